"""Model weights on disk: the checkpoint format and exported models."""
