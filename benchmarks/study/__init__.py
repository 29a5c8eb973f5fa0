"""The study of docs/study.md: all methods, ablations and settings on the built-in scenes."""
