"""Outer loops as generators over a backend: one file each, and one table."""
