"""The user's configuration files, typed and validated once: a run's configuration, and its DeepSpeed file."""
