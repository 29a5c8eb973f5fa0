"""A real TensorBoard in a headless Chromium, and what its page shows of a run."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, TimeoutError, sync_playwright

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1200, 800  # of the page
START = 120.0  # seconds until TensorBoard says where it is
PATIENCE = 10_000  # milliseconds until the page is loaded again: the server may have read only part of the run
LOADS = 4
HOVER = 30.0  # seconds to find all points of a curve
STRIDE = 3  # pixels between looks at a curve
# By tab, what the page calls what it shows of a tag, and what is in it once it is loaded.
CARDS = {
    "scalars": ("tf-scalar-card", "vz-line-chart2[data-loaded-once]"),
    "images": ("tf-image-loader", "img"),
    "text": ("tf-text-loader", "tf-markdown-view"),
}


def find_chromium() -> str | None:
    """The installed Chromium, the one without windows before those that also have some; None: there is none."""
    return next((found for program in PROGRAMS if (found := shutil.which(program))), None)


@contextlib.contextmanager
def open_browser(program: str) -> Iterator[Browser]:
    """A Chromium without a window."""
    with sync_playwright() as playwright:
        # Its sandbox needs privileges that containers do not give; it shows nothing but our own server's pages.
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=False)
        yield browser
        browser.close()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """TensorBoard for a run's curves, on a free port of this machine; gives its address.

    Raises:
        RuntimeError: it ends by itself, or says nothing; with its output.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"]
    with (
        tempfile.NamedTemporaryFile("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as server,
    ):
        try:
            end = time.monotonic() + START
            while True:
                ended = server.poll() is not None
                said = Path(output.name).read_text()
                if found := re.search(r"http://127\.0\.0\.1:\d+/", said):
                    break
                if ended or time.monotonic() > end:
                    raise RuntimeError(f"TensorBoard does not start: {said}")
                time.sleep(0.1)
            yield found[0]
        finally:
            server.terminate()


class Board:
    """A tab of TensorBoard's page that shows some tags.

    Args:
        browser: to open a page in.
        address: of TensorBoard.
        tab: `scalars`, `images` or `text`.
        tags: to show; the page is loaded anew until it has them.

    Raises:
        TimeoutError: the page does not show them.
    """

    def __init__(self, browser: Browser, address: str, tab: str, *tags: str, height: int = HEIGHT) -> None:
        self.page: Page = browser.new_page(viewport={"width": WIDTH, "height": height})
        self._card, loaded = CARDS[tab]
        self.page.goto(f"{address}#{tab}&_smoothingWeight=0&tagFilter=^({'|'.join(tags)})$")
        for load in range(LOADS):
            try:
                for tag in tags:
                    self.card(tag).locator(loaded).first.wait_for(timeout=PATIENCE)
                return
            except TimeoutError:
                if load == LOADS - 1:
                    raise
                self.page.reload()

    def card(self, tag: str) -> Locator:
        """What is shown of a tag."""
        return self.page.locator(self._card).filter(has=self.page.get_by_text(tag, exact=True)).first

    def picture(self, tag: str) -> Locator:
        """The picture that is shown of a tag, once it is drawn."""
        picture = self.card(tag).locator("img")
        self.page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
        return picture

    def wait_for_curve(self, tag: str) -> None:
        """Waits until the curve of a tag is drawn, its axes first."""
        self.card(tag).locator("vz-line-chart2 .tick-label:visible").first.wait_for()
        self.card(tag).locator("vz-line-chart2 .plottable path").first.wait_for(state="attached")

    def points(self, tag: str, run: str, steps: Collection[int]) -> dict[int, float]:
        """The points of a curve that appear where the mouse is, moved along it until these steps have been seen.

        Of a page only one curve, as what the mouse brought up of another may still be there.

        Args:
            tag: of the curve.
            run: of its runs.
            steps: below 1000, where the page begins to abbreviate.

        Returns:
            By step, the value, as exactly as the page tells it: four significant digits.
        """
        plot = self.card(tag).locator("vz-line-chart2 .main").first
        outliers = self.page.get_by_role("checkbox", name="Ignore outliers in chart scaling")
        if outliers.is_checked():  # a point outside the chart does not appear
            outliers.click()
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        seen: dict[int, float] = {}
        row = self.page.locator("tr").filter(has=self.page.locator("td", has_text=re.compile(f"^{run}$")))
        end = time.monotonic() + HOVER
        for place in itertools.cycle(range(0, int(box["width"]), STRIDE)):
            if seen.keys() >= set(steps) or time.monotonic() > end:
                return seen
            self.page.mouse.move(box["x"] + place, box["y"] + box["height"] / 2)
            for shown in row.all_inner_texts():
                cells = shown.split("\t")  # colour, name, smoothed, value, step, time, relative
                seen[int(cells[4])] = float(cells[3])
        return seen
