"""Pure functions: no input or output, no logging, no clock, no global randomness."""
