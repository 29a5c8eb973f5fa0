"""TensorBoard, looked at: what its page shows of a finished run."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from growclip_ds.growth.phases import Phase
from growclip_ds.monitor import read_summaries
from growclip_ds.monitor.monitor import PHASE_NUMBERS
from growclip_ds.run.folder import RunFolder
from tests.browser.board import Board, serve
from tests.pipeline_runs import PHASES, STEPS

SELECTION = "selection/candidates"


@pytest.fixture(scope="module")
def run(finished_run: RunFolder) -> RunFolder:
    return finished_run


@pytest.fixture(scope="module")
def address(run: RunFolder) -> Iterator[str]:
    with serve(run.tensorboard) as address:
        yield address


@pytest.fixture(scope="module")
def written(run: RunFolder) -> EventAccumulator:
    """What is in the event files of the training."""
    return EventAccumulator(str(run.tensorboard / "training")).Reload()


def test_scalars_of_all_phases(browser: Browser, address: str, run: RunFolder, written: EventAccumulator) -> None:
    records = list(run.records())
    assert [(record.step, record.phase) for record in records] == PHASES
    iterations = range(1, sum(record.iterations for record in records) + 1)
    losses = Board(browser, address, "scalars", "train/loss").points("train/loss", "training", iterations)
    numbers, steps = (
        {event.step: event.value for event in written.Scalars(tag)} for tag in ("phase/number", "phase/growth_step")
    )
    assert losses == {event.step: pytest.approx(event.value, rel=1e-3) for event in written.Scalars("train/loss")}
    for record in records:
        first = record.first_iteration
        for iteration in range(first + 1, first + record.iterations + 1):
            assert iteration in losses
            assert numbers[iteration] == PHASE_NUMBERS[record.phase]
            assert steps[iteration] == record.step


def test_accuracy_over_growth_steps(browser: Browser, address: str, run: RunFolder) -> None:
    reported = {summary.step: summary.after for summary in read_summaries(run)}
    tag = "zero_shot/scenes_objects"
    expected = {step: pytest.approx(accuracies["scenes_objects"], rel=1e-3) for step, accuracies in reported.items()}
    assert len(expected) == STEPS
    assert Board(browser, address, "scalars", tag).points(tag, "growth", reported) == expected


def test_the_selection_is_drawn(browser: Browser, address: str, run: RunFolder) -> None:
    board = Board(browser, address, "images", SELECTION)
    expect(board.card(SELECTION).get_by_text(f"step {STEPS}", exact=True)).to_be_visible()
    shown = np.asarray(Image.open(io.BytesIO(board.picture(SELECTION).screenshot())).convert("RGB"))
    height, width, _ = shown.shape
    assert min(height, width) > 200
    # A figure of 64 candidates, coloured by their metric: neither blank nor a broken picture's sign.
    colours = np.unique(shown.reshape(-1, 3), axis=0)
    assert len(colours) > 64
    assert ((colours.max(axis=1) - colours.min(axis=1)) > 60).sum() > 10


def test_texts_say_what_was_trained_and_compared(browser: Browser, address: str, run: RunFolder) -> None:
    tags = ("phase/started/text_summary", f"{SELECTION}/text_summary")
    board = Board(browser, address, "text", *tags)
    for step, phase in PHASES:
        expect(board.card(tags[0]).get_by_text(f"growth step {step}, {phase}: ")).to_be_visible()
    candidates = board.card(tags[1]).locator("tr:not(:has(table))").filter(has_text=re.compile(r"\(\d(, \d){5}\)"))
    assert len(run.record(STEPS, Phase.SELECTION).candidates) == 64
    expect(candidates).to_have_count(64)
    assert str(run.selected_architecture(STEPS)) in candidates.first.inner_text()
