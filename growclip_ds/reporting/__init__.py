"""Reports: from the folders of runs to the shapes of the paper's tables and figures."""

from growclip_ds.reporting.report import Report, make_report
from growclip_ds.reporting.runs import Run, read_runs
from growclip_ds.reporting.writing import write_report

__all__ = ["Report", "Run", "make_report", "read_runs", "write_report"]
