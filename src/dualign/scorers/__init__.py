"""(Prompts, responses) to numbers: one file each, and one table."""
