"""What a run costs, worked out before it is started or goes on: operations, memory, communication, time, disk."""
