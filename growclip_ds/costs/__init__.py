"""What a run, or the rest of one, will cost: FLOPs, memory, communication, time, disk."""
