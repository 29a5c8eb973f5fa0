"""Plans what a run, or the rest of one, will cost: FLOPs, memory, communication, time and disk space."""
