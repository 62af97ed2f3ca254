"""Is a scorer any good as a reward or a cost: figures against labels, and a verdict."""
