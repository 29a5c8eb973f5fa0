"""Reports on runs: tables and figures in the form of the paper's."""

from growclip_ds.reporting.report import Report, make_report
from growclip_ds.reporting.runs import ReportedRun, read_runs
from growclip_ds.reporting.writing import write_report

__all__ = ["Report", "ReportedRun", "make_report", "read_runs", "write_report"]
