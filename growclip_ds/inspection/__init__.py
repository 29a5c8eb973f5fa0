"""What a checkpoint, a run or an exported model holds."""
