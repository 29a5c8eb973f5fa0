"""What a user writes, typed and validated once: the configuration of a run, and its DeepSpeed file."""
