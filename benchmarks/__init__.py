"""Measurements of speed and memory; each script checks that what it measures is right before it times it."""
