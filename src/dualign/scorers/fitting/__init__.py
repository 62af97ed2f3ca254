"""Reward and cost models from preference rows: a linear head on frozen features, or a whole language model."""
