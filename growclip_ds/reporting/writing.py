"""Writes a report to disk."""

from __future__ import annotations

from pathlib import Path

from growclip_ds.errors import InputError
from growclip_ds.files import write_bytes
from growclip_ds.reporting.html_page import to_html
from growclip_ds.reporting.markdown import to_markdown
from growclip_ds.reporting.report import Report


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes `report.md`, `report.html` and the figures; returns their paths.

    Raises:
        InputError: a file cannot be written.
    """
    written = {folder / figure.file: figure.png for figure in report.figures}
    written |= {folder / "report.md": to_markdown(report).encode(), folder / "report.html": to_html(report).encode()}
    try:
        for path, data in written.items():
            write_bytes(path, data)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written ({error.strerror}); name another place") from error
    return list(written)
