"""Programs for maintaining checkpoints."""
