"""Built-in data: any number of captioned images, generated from a seed, for training and evaluation."""
