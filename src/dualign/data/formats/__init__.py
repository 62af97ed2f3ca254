"""Formats of preference files: one file each, one table, and the internal Parquet."""
