"""Built-in data: captioned images, drawn from a seed, any number of them, for training and evaluation."""
