"""A run on disk, and when its next growth step is due."""
