"""From shards to batches: index, subsets, order, images and tokens, and the stream that training reads."""
