"""The run directory: atomic files, journal, lock."""
