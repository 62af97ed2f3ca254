"""Prompts, pairs and splits."""
