"""One phase's optimisation: the DeepSpeed engine, iterations, their health, checkpoints in between."""
