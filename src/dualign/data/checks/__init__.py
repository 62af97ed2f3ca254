"""What can be wrong with preference data: rules, statistics, near-duplicates, and the files without the bad rows."""
