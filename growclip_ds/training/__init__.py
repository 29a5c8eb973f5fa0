"""The training of one phase: DeepSpeed engine, iterations, numerical health, checkpoints."""
