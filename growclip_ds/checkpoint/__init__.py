"""The one format on disk."""
