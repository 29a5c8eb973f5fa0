"""A run's folder on disk, and when its next growth step is due."""
