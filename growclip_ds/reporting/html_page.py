"""A report as a single HTML file, without scripts or external resources."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape

from growclip_ds.reporting.report import Figure, Report
from growclip_ds.reporting.table import Table

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 80rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; } td { border-bottom: 1px solid #ddd; }
.right { text-align: right; }
.note, figcaption { color: #555; font-size: 0.9rem; max-width: 60rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_html(report: Report) -> str:
    """Renders a report as HTML, with its figures embedded."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(report.title)}</title>"
    yield f"<style>{_STYLE}</style>"
    yield "</head>"
    yield "<body>"
    yield f"<h1>{escape(report.title)}</h1>"
    if report.notes:
        yield "<ul>"
        yield from (f"<li>{escape(note)}</li>" for note in report.notes)
        yield "</ul>"
    for table in report.tables:
        yield from _table(table)
    for figure in report.figures:
        yield from _figure(figure)
    yield "</body>"
    yield "</html>"


def _table(table: Table) -> Iterator[str]:
    attributes = [' class="right"' if column.right else "" for column in table.columns]
    yield f'<h2 id="{escape(table.name)}">{escape(table.title)}</h2>'
    yield f'<div class="scroll"><table aria-labelledby="{escape(table.name)}">'
    heads = zip(table.columns, attributes, strict=True)
    cells = "".join(f'<th scope="col"{attribute}>{escape(column.title)}</th>' for column, attribute in heads)
    yield f"<thead><tr>{cells}</tr></thead>"
    yield "<tbody>"
    for row in table.cells():
        cells = "".join(f"<td{attribute}>{escape(cell)}</td>" for cell, attribute in zip(row, attributes, strict=True))
        yield f"<tr>{cells}</tr>"
    yield "</tbody></table></div>"
    yield from (f'<p class="note">{escape(note)}</p>' for note in table.notes)


def _figure(figure: Figure) -> Iterator[str]:
    data = base64.b64encode(figure.png).decode("ascii")
    yield f"<h2>{escape(figure.title)}</h2>"
    yield f'<figure><img alt="{escape(figure.title)}" src="data:image/png;base64,{data}">'
    yield f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
