"""A run directory made readable: HTML and text. Never a live object, no torch."""
