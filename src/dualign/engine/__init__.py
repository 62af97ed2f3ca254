"""Pairs to log-probabilities to gradient steps, on language models."""
