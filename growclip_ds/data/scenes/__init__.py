"""Built-in data: captioned pictures drawn by a seed, for training and for evaluation, at any number."""
