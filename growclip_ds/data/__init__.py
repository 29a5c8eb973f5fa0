"""Shards to batches: index, subsets, order, pictures and tokens, and the stream that training reads."""
