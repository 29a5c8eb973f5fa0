"""`growclip plan --run`: what is left of a run, by its records, its data, its checkpoints and its speed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.checkpoint.checkpoint import save_model
from growclip_ds.cli.program import main
from growclip_ds.config.config import load_config
from growclip_ds.costs.begun import BegunRun
from growclip_ds.costs.making import Request, make_plan
from growclip_ds.costs.plan import Plan
from growclip_ds.data.subsets import Subset, write_subsets
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import described
from tests.group import Groups
from tests.hub.models import write_recorded_run
from tests.pipeline_runs import SUBSET, grow_until, write_data
from tests.records import phase_record, training
from tests.reporting.made_up import BASE, BATCH, SEEN, candidate, write_config, write_fixed, write_phase

SIZES = {"vocab_size": 300, "context_length": 16, "image_size": 32, "embed_dim": 16}
SAMPLES = (1000, 2000, 3000)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of three growth steps, the first finished; two subsets were opened."""
    growth, selection = {"conv_step": 1, "block_step": 1, "head_step": 1}, {"held_out": 100}
    folder = write_config(tmp_path / "run", steps=3, growth=growth, selection=selection)
    counted = [Subset(f"s{n}", f"s{n}", samples) for n, samples in enumerate(SAMPLES[:2], start=1)]
    write_subsets(counted, folder / "data.yaml")
    write_phase(folder, 1)
    return folder


def whole(run: Path) -> Plan:
    """The plan of the run as if it were to be started, by the same speed and captions."""
    samples = [f"data.subsets.{n}.samples={count}" for n, count in enumerate(SAMPLES)]
    config = load_config(run / "config.yaml", samples)
    return make_plan(config, Request(gpus=2, measured=run, caption_tokens=9.0))


def rest(run: Path, *overrides: str, **request: Any) -> Plan:
    begun = BegunRun(run)
    return make_plan(begun.config(["data.subsets.2.samples=3000", *overrides]), Request(**request), begun)


def costs(plan: Plan, path: str, first: int) -> list[dict[str, Any]]:
    """The phases of a path from one on."""
    return plan.to_json()["paths"][path]["phases"][first:]


def interrupt(run: Path, phase: Phase, architecture: Architecture, iteration: int) -> Path:
    """A checkpoint of growth step 2, as far as plans look at it."""
    place = RunFolder(run).checkpoints(2, phase) / f"iteration_{iteration:09d}"
    record = phase_record(2, phase, iterations=0, training=training(ranks=5))
    save_model(GrowCLIP(architecture, **SIZES), place, **described(record), resume={"iteration": iteration})
    return place


def test_after_a_step_the_rest_of_the_whole_plan_is_left(run: Path) -> None:
    all_of_it, left = whole(run), rest(run)
    assert left.samples == SAMPLES
    assert left.steps_left == left.steps_open == [2, 3]
    assert left.ranks == 2
    assert left.speed == all_of_it.speed
    for path in ("cheapest", "dearest"):
        entries = costs(left, path, 0)
        assert entries == costs(all_of_it, path, 1)
        assert [entry["iterations"] for entry in entries[:3]] == [
            -(-entry["epochs"] * (3000 - 200) // BATCH) for entry in entries[:3]
        ]
        total = left.to_json()["paths"][path]
        assert total["hours"] == pytest.approx(total["device_hours"] / 2)
        assert sum(step["hours"] for step in total["steps"]) == pytest.approx(total["hours"])
    assert left.disk(left.dearest).weights == all_of_it.disk(all_of_it.dearest).weights - 4 * (
        ModelSizes(**SIZES).parameters_of(BASE) + 1
    )


def test_only_what_the_run_grows_from_has_to_be_within_the_limit(run: Path) -> None:
    """Begun with a model of its own (model.start), a run does not use model.base."""
    speed = rest(run).speed
    limit = 2 * ModelSizes(**SIZES).parameters_of(BASE)
    file, larger = run / "config.yaml", replace(BASE, image_blocks=9, text_blocks=9)
    file.write_text(load_config(file, [f"growth.max_parameters={limit}", _base(larger)]).to_yaml())
    assert ModelSizes(**SIZES).parameters_of(larger) > limit
    assert rest(run).speed == speed is not None
    file.write_text(load_config(file, ["growth.max_parameters=1000"]).to_yaml())
    with pytest.raises(InputError, match=r"max_parameters is 1,000, but .*'s model \("):
        rest(run)


def _base(architecture: Architecture) -> str:
    return f"model.base={json.dumps(dict(architecture.items()))}"


def test_in_the_middle_of_a_step_its_last_phases_are_left(run: Path) -> None:
    """The selected architecture is known before it is trained."""
    path = whole(run).dearest
    grown, supernet = path.architectures[1], path.phases[1].architecture
    write_phase(run, 2, "finetune", architecture=supernet)
    assert costs(rest(run), "dearest", 0) == costs(whole(run), "dearest", 2)
    assert costs(rest(run), "cheapest", 0) == costs(whole(run), "cheapest", 2)
    write_phase(run, 2, "selection", architecture=supernet, candidates=[candidate(grown, 1, 9), candidate(BASE, 1, 5)])
    left = rest(run)
    assert costs(left, "dearest", 0) == costs(whole(run), "dearest", 3)
    assert [(phase.step, phase.phase, phase.architecture) for phase in left.cheapest.phases[:1]] == [
        (2, Phase.TRAIN, grown)
    ]
    assert left.steps_open == [3]
    assert [step["step"] for step in left.to_json()["steps"]] == [2, 3]
    assert "candidates" not in left.to_json()["steps"][0]


def test_an_interrupted_phase_goes_on_from_its_newest_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    supernet = whole(run).dearest.phases[1].architecture
    before = rest(run).dearest.phases[0]
    interrupt(run, Phase.FINETUNE, supernet, 40)
    (interrupt(run, Phase.FINETUNE, supernet, 60) / "weights.json").write_text("{")  # the run passes it over
    left = rest(run)
    finetune = left.dearest.phases[0]
    assert finetune.done == 40
    assert left.ranks == 5
    assert left.pairs(finetune) == left.pairs(before) - 40 * BATCH
    assert left.iterations(finetune) == left.iterations(before) - 40
    assert left.epochs(finetune) == pytest.approx(2 - 40 * BATCH / (3000 - 200))
    assert costs(left, "dearest", 1) == costs(rest(run, gpus=5), "dearest", 1)
    assert main(["plan", "--run", str(run), "data.subsets.2.samples=3000"]) == 0
    text = capsys.readouterr().out
    assert f"{run}: the rest, after growth step 1, 40 iterations of step 2's finetune." in " ".join(text.split())
    assert "5 × GPU" in text


def test_a_model_that_is_trained_needs_no_more(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even where nothing was selected, and no record says what is trained."""
    for name in ("finetune", "selection"):
        write_phase(run, 2, name, architecture=whole(run).dearest.phases[1].architecture)
    grown = Architecture(1, 2, 1, 1, 1, 0)
    interrupt(run, Phase.TRAIN, grown, 40)
    left = rest(run)
    assert (left.dearest.phases[0].architecture, left.dearest.phases[0].done) == (grown, 40)
    shutil.rmtree(RunFolder(run).checkpoints(2, Phase.TRAIN))
    save_model(GrowCLIP(grown, **SIZES), RunFolder(run).weights(2, Phase.TRAIN), **described(phase_record(2)))
    left = rest(run)
    assert left.steps_left == [3]
    assert left.bases(3) == [grown]
    assert main(["plan", "--run", str(run), "growth.steps=2"]) == 0
    assert "still to be evaluated" in capsys.readouterr().out


def test_of_a_finished_run_nothing_is_left(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", "--run", str(run), "growth.steps=1", "--json", str(out)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{run}: nothing is left, as growth step 1, the last, is finished")
    assert line.endswith("another one needs growth.steps more than 1.")
    plan = json.loads(out.read_text())
    assert plan["steps"] == plan["paths"]["dearest"]["phases"] == []
    listed = tmp_path / "mine.yaml"
    write_subsets([Subset(f"s{n}", f"s{n}", samples) for n, samples in enumerate(SAMPLES, start=1)], listed)
    (run / "config.yaml").write_text(load_config(run / "config.yaml", [f"data.subsets={listed}"]).to_yaml())
    for name in ("finetune", "selection", "train"):
        for step in (2, 3):
            write_phase(run, step, name)
    assert main(["plan", "--run", str(run)]) == 0
    assert capsys.readouterr().out.endswith("is finished; another one needs another subset in data.subsets.\n")
    write_subsets([Subset(f"s{n}", f"s{n}", 1000 * n) for n in (1, 2, 3, 4)], listed)
    assert main(["plan", "--run", str(run), f"data.subsets={listed}", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in plan["steps"]] == [4]
    assert plan["samples"] == [*SAMPLES, 4000]


def test_the_precision_is_the_runs_and_other_files_may_be_tried(run: Path) -> None:
    (run / "deepspeed.json").write_text(json.dumps({"precision": "bf16", "data_types": {"grad_accum_dtype": "fp32"}}))
    assert (rest(run).deepspeed.precision, rest(run).deepspeed.stage) == ("bf16", 2)
    zero3 = Path(__file__).parents[2] / "ds_configs" / "zero3.json"
    assert rest(run, deepspeed=str(zero3), gpus=5).deepspeed.stage == 3
    assert rest(run, gpus=5).ranks == 5
    given = rest(run, throughput=100.0).speed
    assert given is not None
    assert given.source.startswith("from the given 100 pairs/s on 2 GPUs")


def test_a_first_phase_that_is_not_finished_gives_a_speed(run: Path) -> None:
    """That of its newest checkpoint; a finished phase gives a better one."""
    finished = rest(run).speed
    interrupt(run, Phase.TRAIN, Architecture(1, 2, 1, 1, 1, 0), 40)
    assert rest(run).speed == finished
    (run / "step_1/train/phase.json").rename(run / "first.json")
    save_model(
        GrowCLIP(BASE, **SIZES),
        run / "step_1/train/checkpoints/iteration_000000005",
        **described(phase_record(architecture=BASE)),
        resume={"iteration": 5},
    )
    speed = rest(run).speed
    assert speed is not None
    assert speed.source.startswith(f"measured: {run}, growth step 1 so far, 8.3 pairs/s per rank")
    assert speed.flops == pytest.approx(1000 / 120 * rest(run).steps.pair_flops(BASE))


def test_captions_are_as_long_as_the_run_has_seen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over all phases, the unfinished one included; --caption-tokens takes precedence."""
    assert rest(run).text_tokens == 9
    record = phase_record(
        2, Phase.FINETUNE, iterations=0, training=training(pairs_seen=SEEN, text_tokens_seen=12 * SEEN)
    )
    place = RunFolder(run).checkpoints(2, Phase.FINETUNE) / "iteration_000000040"
    save_model(GrowCLIP(BASE, **SIZES), place, **described(record), resume={"iteration": 40})
    assert rest(run).text_tokens == 10.5
    assert rest(run, caption_tokens=8.0).text_tokens == 8
    assert main(["plan", "--run", str(run), "data.subsets.2.samples=3000"]) == 0
    assert "10.5 tokens per caption" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_has_trained_nothing_has_no_speed(run: Path) -> None:
    """Its first growth step came with its model."""
    file = run / "step_1/train/phase.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"start": "exported"}))
    left = rest(run)
    assert left.speed is None
    assert left.ranks == 1
    assert left.hours(*left.dearest.phases) is None


def test_a_fixed_model_goes_on_too(tmp_path: Path) -> None:
    run = write_fixed(tmp_path / "run", "twp", [50.0])
    begun = BegunRun(run)
    config = begun.config(["data.subsets.0.samples=2000", "data.subsets.1.samples=2000"])
    left = make_plan(config, Request(), begun)
    assert [(phase.step, phase.phase) for phase in left.cheapest.phases] == [(2, Phase.TRAIN)]
    assert left.to_json()["paths"]["dearest"]["disk_bytes"] is None


def test_a_checkpoint_is_as_large_as_it_is_planned(
    group: Groups, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that training itself has left, in the middle of its first growth step."""
    data, run = write_data(tmp_path), tmp_path / "run"
    options = ("epochs.first=4", "checkpoint.every_iterations=3", "evaluation.datasets=[]")
    assert group(2).run(grow_until, data, run, 8, 2, 1, options) == [False, False]
    arguments = ["plan", "--run", str(run), f"data.subsets.1.samples={SUBSET}"]
    assert main([*arguments, "--throughput", "100", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    first = plan["paths"]["dearest"]["phases"][0]
    assert (first["step"], first["iterations_done"], first["iterations"]) == (1, 8, 4)
    assert plan["ranks"] == 2
    kept = list(RunFolder(run).checkpoints(1, Phase.TRAIN).glob("iteration_*"))
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in kept]
    assert main([*arguments, "growth.steps=1", "--json", "-"]) == 0
    needed = json.loads(capsys.readouterr().out)["paths"]["dearest"]["disk_bytes"]
    assert sizes == pytest.approx([needed["checkpoint"]] * 2, rel=0.03)
    assert needed["checkpoints"] == len(kept) + 1
    assert needed["weights"] == pytest.approx(needed["checkpoint"] / 3)


def test_an_exported_model_is_grown_on(tmp_path: Path) -> None:
    exported, file = tmp_path / "exported", tmp_path / "config.yaml"
    assert main(["export", str(write_recorded_run(tmp_path / "old")), str(exported)]) == 0
    values = {
        "model": {"start": str(exported), "context_length": 24, "image_size": 16, "embed_dim": 32},
        "data": {
            "subsets": [{"name": f"s{n}", "shards": f"s{n}", "samples": 2000} for n in range(3)],
            "tokenizer": {"name_or_path": str(exported)},
        },
    }
    file.write_text(yaml.safe_dump(values))
    plan = make_plan(load_config(file), Request())
    grown = Architecture(1, 1, 1, 1, 2, 1)
    assert plan.steps_left == [3]
    assert plan.bases(3) == [grown]
    same = make_plan(load_config(file, ["model.start=null"]), Request(), None)
    assert plan.cheapest.phases[-1].flops == same.steps.pair_flops(grown)
    with pytest.raises(InputError, match=r"max_parameters is 1,000, but model\.start \(.*\)'s model \(1, 1"):
        make_plan(load_config(file, ["growth.max_parameters=1000"]), Request())
    with pytest.raises(InputError, match=r"model\.start, .*, has ModelSizes\(.*image_size=16.* but the run has"):
        make_plan(load_config(file, ["model.image_size=32"]), Request())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to plan: --config FILE for a new run, or --run RUN for one that has started"),
        (
            ["--run", "RUN", "--config", "c.yaml"],
            "is planned from its own configuration, and --config c.yaml is that of a new run",
        ),
        (["--run", "nowhere"], "there is no folder nowhere; name the --output-dir"),
        (["--run", "RUN", "model.embed_dim=64"], "model.embed_dim cannot change during a run"),
        (["--run", "RUN", "training=null"], "training cannot change during a run"),
        (["--run", "RUN", "--gpus", "60"], "--gpus 60 exceeds the 50 pairs of a global batch"),
        (["--run", "RUN", "data.subsets.0.name=other"], "data subset 1 of this run is 's1'"),
        (["--run", "RUN", "--measured", "nowhere"], "nowhere holds no run"),
    ],
)
def test_wrong_requests_are_one_line(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(str(run) if word == "RUN" else word for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("growclip: error: ")
    assert error.count("\n") == 1
