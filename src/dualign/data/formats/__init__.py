"""Formats of preference files: a file for each family, one table, and the internal Parquet."""
