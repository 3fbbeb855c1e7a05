"""Models on disk: run folders, and the checkpoints of other code."""
