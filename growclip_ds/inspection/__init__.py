"""Inspection of checkpoints, runs and exported models."""
