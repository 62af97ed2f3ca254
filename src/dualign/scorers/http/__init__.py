"""Scorers that live behind an address: a plain JSON protocol, and a chat model as the judge."""
