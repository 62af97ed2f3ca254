"""Finite problems, whose optimum is known exactly."""
