"""Monitoring of a run: TensorBoard, progress on the terminal, and a summary at the end."""

from growclip_ds.monitor.monitor import Monitor, RunMonitor, open_monitor
from growclip_ds.monitor.reports import CheckpointCost, Progress
from growclip_ds.monitor.summary import StepSummary, read_summaries
from growclip_ds.monitor.tables import print_summary

__all__ = [
    "CheckpointCost",
    "Monitor",
    "Progress",
    "RunMonitor",
    "StepSummary",
    "open_monitor",
    "print_summary",
    "read_summaries",
]
