"""The checkpoint format."""
