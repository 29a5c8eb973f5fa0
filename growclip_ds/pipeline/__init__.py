"""Growth steps as phases, weights in, weights out; which weights, says the method's recipe."""
