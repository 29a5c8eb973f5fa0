"""A phase's record: to JSON and back, in checkpoints, and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.data.faults import Cause
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.growth.selection import Candidate
from growclip_ds.run.records import CurvePoint, PhaseRecord, described, read_record, record_so_far
from tests.evaluation.models import write_model
from tests.records import classified, phase_record, retrieved, training

RESULTS = (classified("things", 12.5), retrieved("pairs", 7.25))
CANDIDATES = tuple(Candidate(Architecture(0, 1, 1, 1, n, 0), 100 * n, 30.0 - n, 31.0 - n) for n in (1, 2))
RECORDS = {
    "of a model": phase_record(
        curve=(CurvePoint(5, RESULTS[:1]), CurvePoint(10, RESULTS)),
        evaluation=RESULTS,
        training=training(broken_samples={Cause.NO_CAPTION: 2}, dead_workers=1, skipped_iterations=3),
    ),
    "of a supernet": phase_record(2, Phase.SELECTION, selection_set="things", candidates=CANDIDATES),
    "that came with a model": phase_record(start="exported", training=None, samples=0, iterations=0),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_json_and_back(record: PhaseRecord) -> None:
    values = json.loads(json.dumps(record.to_json()))
    assert PhaseRecord.from_json(record.step, record.phase, values) == record


def test_keys_are_those_that_scripts_know() -> None:
    trained = {
        "samples", "parameters", "model", "iterations", "first_iteration", "seconds", "device_seconds", "curve",
        "epochs", "ranks", "device", "kernels", "pairs_seen", "text_tokens_seen", "dead_workers", "broken_samples",
        "skipped_iterations",
    }  # fmt: skip
    assert set(RECORDS["of a model"].to_json()) == trained | {"evaluation"}
    assert set(RECORDS["of a supernet"].to_json()) == trained | {"selection_set", "candidates"}
    assert RECORDS["of a supernet"].to_json()["model"] == {
        "kind": "growclip",
        "architecture": dict(Architecture(0, 1, 1, 1, 1, 0).items()),
    }


def test_epochs_are_those_that_the_phase_made() -> None:
    """Of streamed data each ends with a short iteration; of held-out pairs none is trained on."""
    record = phase_record(iterations=120, training=training(epochs=30))
    assert record.epochs_after(60) == 15
    assert phase_record(iterations=0, training=training(epochs=0)).epochs_after(0) == 0  # it only inherits
    assert RECORDS["that came with a model"].epochs_after(0) == 0


def test_a_checkpoint_says_what_its_phase_has_done(tmp_path: Path) -> None:
    record = phase_record(2, Phase.FINETUNE)
    kept = write_model(tmp_path / "kept", seed=0, **described(record))
    assert record_so_far(Checkpoint(kept)) == record
    assert record_so_far(Checkpoint(write_model(tmp_path / "plain", seed=0))) is None
    damaged = write_model(tmp_path / "damaged", seed=0, **described(record) | {"record": {"samples": 1}})
    with pytest.raises(InputError, match=r"damaged: the record of its phase is damaged, .*: no 'parameters'; restore"):
        record_so_far(Checkpoint(damaged))


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda values: values.pop(key)


def change(**new: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: values.update(new)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *((without(key), f"no '{key}'") for key in ("parameters", "device_seconds", "curve", "epochs")),
        (without("broken_samples"), "no 'broken_samples'"),
        (change(seconds="long"), "seconds is 'long'"),
        (change(device_seconds=-1.0), r"device_seconds is -1\.0"),
        (change(seconds=float("nan")), "seconds is nan"),
        (change(samples=0), "samples is 0"),
        (change(iterations=1.5), r"iterations is 1\.5"),
        (change(ranks=True), "ranks is True"),
        (change(device=7), "device is 7"),
        (change(broken_samples={"odd": 1}), "'odd' is not a valid Cause"),
        (change(model={"architecture": dict(Architecture(0, 1, 1, 1, 1, 0).items())}), "no 'kind'"),
        (change(candidates=[]), "no 'selection_set'"),
    ],
)
def test_a_damaged_record_is_named_with_its_key(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], words: str
) -> None:
    values = RECORDS["of a model"].to_json()
    spoil(values)
    file = tmp_path / "phase.json"
    file.write_text(json.dumps(values))
    remedy = "copy it again, or remove it and start the run again, which then evaluates the phase's weights again"
    with pytest.raises(InputError, match=rf"phase\.json is damaged: {words}; {remedy}"):
        read_record(file, 1, Phase.TRAIN)


def test_steps_that_came_with_a_model_need_not_say_how_they_were_trained(tmp_path: Path) -> None:
    """As they were written before there were curves and device hours."""
    values = RECORDS["that came with a model"].to_json()
    del values["device_seconds"], values["curve"]
    file = tmp_path / "phase.json"
    file.write_text(json.dumps(values))
    expected = replace(RECORDS["that came with a model"], device_seconds=0.0)
    assert read_record(file, 1, Phase.TRAIN) == expected
