"""Benchmarks of speed and memory; each script checks that results are correct before it times them."""
