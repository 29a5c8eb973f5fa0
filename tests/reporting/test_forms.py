"""Markdown, HTML and PNG hold what the tables and figures are made of, and nothing else."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from growclip_ds.cli.program import main
from growclip_ds.monitor.figures import NEW, OLD
from growclip_ds.reporting import Report, make_report, read_runs
from growclip_ds.reporting.comparison import compare
from growclip_ds.reporting.figures import growth_figure, has_curve, step_curve, training_figure
from growclip_ds.reporting.html_page import to_html
from growclip_ds.reporting.markdown import to_markdown
from tests.reporting.made_up import GROWN, classified, retrieved, write_config, write_fixed, write_growth, write_phase

NASTY = "a|b <script>alert(1)</script> & \"x\" $y$ _z_ `c` \\ 'q' [l](u)"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What an HTML page holds; every element that is opened has to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        self.words.append(data)


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The cells of Markdown's tables, as a reader of GitHub's flavour understands them."""
    tables: list[list[list[str]]] = []
    before = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif before in ("th_open", "td_open"):
            kinds = {child.type for child in token.children or []}
            assert kinds <= {"text", "text_special"}, f"{token.content} has markup"
            tables[-1][-1].append("".join(child.content for child in token.children or []))
        before = token.type
    return tables


def cells(report: Report) -> list[list[list[str]]]:
    return [[[column.title for column in table.columns], *table.cells()] for table in report.tables]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_growth(folder / f"g{seed}", (10.0, 20.0 + seed), seed) for seed in range(2)]
    runs.append(write_fixed(folder / NASTY.replace("/", "%"), "tfs", [9.0, 18.0]))
    runs.append(write_config(folder / "begun", method="sap"))
    for run in runs[:2]:
        add_curve(run, 2, "train", [(5, 12.0), (10, 16.0)])
    return make_report(read_runs(runs))


def add_curve(run: Path, step: int, phase: str, points: list[tuple[int, float]]) -> None:
    file = run / f"step_{step}" / phase / "phase.json"
    curve = [
        {"iteration": iteration, "evaluation": [classified("objects", accuracy)]} for iteration, accuracy in points
    ]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"curve": curve}))


def test_html_holds_every_table(report: Report) -> None:
    page = Page(to_html(report))
    assert page.tables == cells(report)
    text = "".join(page.words)
    for words in (*(table.title for table in report.tables), *report.notes):
        assert words in text


def test_html_fetches_and_runs_nothing(report: Report) -> None:
    page = Page(to_html(report))
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "iframe", "a"}
    sources = [value or "" for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(sources) == len(report.figures)
    for source, figure in zip(sources, report.figures, strict=True):
        assert base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) == figure.png
    assert "@import" not in to_html(report)
    assert "url(" not in to_html(report)


def test_markdown_holds_every_table(report: Report) -> None:
    text = to_markdown(report)
    assert markdown_tables(text) == cells(report)
    kinds = {child.type for token in MarkdownIt("commonmark").parse(text) for child in token.children or []}
    assert "html_inline" not in kinds
    for figure in report.figures:
        assert f"]({figure.file})" in text


def test_figures_are_drawn(report: Report) -> None:
    assert [figure.file for figure in report.figures] == ["accuracy_step_2.png", "growth_1_growclip.png"]
    for figure in report.figures:
        with Image.open(io.BytesIO(figure.png)) as picture:
            picture.load()
            colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        drawn = sum(count for count, colour in colours if max(colour) - min(colour) > 40)  # neither paper nor print
        assert drawn > 300, figure.file


def test_the_curve_of_a_step_goes_through_its_phases(tmp_path: Path) -> None:
    run = write_growth(tmp_path / "g", (10.0, 20.0))
    add_curve(run, 2, "selection", [(10, 3.0)])
    add_curve(run, 2, "train", [(5, 12.0), (20, 20.0)])
    runs = read_runs([run])
    comparison = compare(runs)
    curves = step_curve(comparison, runs[0], 2)  # of 20 iterations of 50 pairs each, at 1,000 samples
    assert [(curve.phase, curve.start, curve.end) for curve in curves] == [
        ("finetune", 0.0, 1.0),
        ("selection", 1.0, 2.0),
        ("train", 2.0, 3.0),
    ]
    assert [curve.points for curve in curves] == [[], [(1.5, 3.0)], [(2.25, 12.0), (3.0, 20.0)]]
    assert has_curve(comparison, 2)
    assert not has_curve(comparison, 1)


def test_a_set_that_was_not_evaluated_in_training_is_not_in_its_curve(tmp_path: Path) -> None:
    run = write_growth(tmp_path / "g", (10.0, 20.0))
    add_curve(run, 2, "train", [(5, 12.0), (20, 20.0)])
    for step, accuracy in ((1, 10.0), (2, 20.0)):
        file = run / f"step_{step}" / "train" / "phase.json"
        both = [classified("objects", accuracy), classified("later", 90.0)]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"evaluation": both}))
    (read,) = read_runs([run])
    comparison = compare([read])
    assert comparison.accuracy_title == "mean top-1 of 2 sets"
    assert comparison.title_in_training == "top-1, objects"
    assert step_curve(comparison, read, 2)[-1].points == [(2.25, 12.0), (3.0, 20.0)]
    assert has_curve(comparison, 2)


def test_a_last_point_alone_is_no_curve(tmp_path: Path) -> None:
    run = write_growth(tmp_path / "g", (10.0, 20.0))
    add_curve(run, 2, "train", [(20, 20.0)])
    assert not has_curve(compare(read_runs([run])), 2)


def test_lines_of_a_step(tmp_path: Path) -> None:
    run = write_growth(tmp_path / "g", (10.0, 20.0))
    add_curve(run, 2, "train", [(5, 12.0), (20, 20.0)])
    silent = write_config(tmp_path / "silent", method="tfs")
    write_phase(silent, 2, evaluation=[])
    (axes,) = training_figure(compare(read_runs([run, silent])), 2).axes
    drawn = [(line.get_linestyle(), [tuple(point) for point in line.get_xydata()]) for line in axes.lines]
    assert drawn[:2] == [
        (":", [(0.0, 10.0), (1.0, 10.0), (1.0, 10.0), (2.0, 10.0)]),  # at the accuracy of the step before
        ("-", [(2.25, 12.0), (3.0, 20.0)]),
    ]
    assert [points[0][0] for _, points in drawn[2:]] == [1.0, 2.0]  # where phases end
    assert [text.get_text() for text in axes.texts] == ["finetune ends", "selection ends"]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["GrowCLIP"]


def test_bars_of_a_growth_path(tmp_path: Path) -> None:
    (group,) = compare(read_runs([write_growth(tmp_path / "g", (10.0, 20.0))])).groups
    first, second = (
        {
            colour: [bar.get_height() for bar in axes.patches if to_hex(bar.get_facecolor()) == colour]
            for colour in (OLD, NEW)
        }
        for axes in growth_figure(group).axes
    )
    assert first[OLD] == [0, 1, 1, 1, 1, 0]
    assert second == {NEW: [1, 2, 1, 1, 1, 0], OLD: [0, 1, 1, 1, 1, 0]}  # the old ones in front


def test_long_names_are_whole(tmp_path: Path) -> None:
    run = write_growth(tmp_path / "a-run-of-which-the-name-says-lr0.0003-bs1536-beta0.6-seed0", (10.0, 20.0))
    add_curve(run, 2, "train", [(5, 12.0), (20, 20.0)])
    comparison = compare(read_runs([run]))
    label = "GrowCLIP without PIM@1 and ST and GAS and PIM@3, training.optimizer=lamb, training.learning_rate=0.0003"
    groups = [replace(comparison.groups[0], label=label)] * 2
    for figure in (training_figure(replace(comparison, groups=groups), 2), growth_figure(groups[0])):
        FigureCanvasAgg(figure).draw()
        for text in figure.findobj(Text):
            if any(map(str.isalpha, text.get_text())):  # and not a tick beyond the axes
                box = text.get_window_extent()
                assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
                assert 0 <= box.y0 <= box.y1 <= figure.bbox.y1, text


def test_command_writes_the_report_and_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_config(tmp_path / "run", steps=3)
    write_phase(run, 1, evaluation=[classified("objects", 10.123456), retrieved("r", (1, 2, 3), (1, 2, 3))])
    write_phase(
        run, 2, evaluation=[classified("objects", 20.0), retrieved("r", (1, 2, 3), (1, 2, 3))], architecture=GROWN
    )
    output, data = tmp_path / "report", tmp_path / "data" / "report.json"
    assert main(["report", str(run), "--output", str(output), "--json", str(data)]) == 0
    printed = capsys.readouterr()
    assert set(map(Path, printed.out.splitlines())) == {*output.iterdir(), data}
    assert {path.suffix for path in output.iterdir()} == {".md", ".html", ".png"}
    assert printed.err == "growclip: note: run is not finished: 2 of 3 growth steps.\n"
    (table,) = [table for table in json.loads(data.read_text())["tables"] if table["name"] == "growth_steps"]
    first = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert first["objects"] == 10.123456
    assert first["architecture"]["image_blocks"] == 1
