"""One config, from prompts to a certificate: the parts wired together, every expensive step a phase of the journal."""
