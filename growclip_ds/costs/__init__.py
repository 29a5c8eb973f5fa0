"""What a run costs, worked out from its configuration before it is started: operations, memory, communication, time."""
