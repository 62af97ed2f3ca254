"""Where policies are fitted: exactly on finite worlds, by gradient steps on language models."""
