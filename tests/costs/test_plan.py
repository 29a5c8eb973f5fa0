"""`growclip plan`: what it prints and writes, where its speed comes from, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.cli.program import main
from growclip_ds.config.config import load_config
from growclip_ds.costs.hardware import load_hardware
from growclip_ds.costs.making import Request, make_plan
from growclip_ds.costs.memory import Load, Sharding, memory
from growclip_ds.errors import InputError
from growclip_ds.run.folder import RunFolder
from tests.costs.test_steps import S1, config
from tests.records import phase_record, training

ROOT = Path(__file__).parents[2]
H100, V100 = (str(ROOT / "configs" / "hardware" / f"{name}.yaml") for name in ("h100-80", "v100-32"))
ZERO2, FP16, OFFLOAD = (str(ROOT / "ds_configs" / f"{name}.json") for name in ("zero2", "fp16", "zero3_offload"))


def test_every_hardware_file_is_right_and_of_its_gpu() -> None:
    files = {file.stem: load_hardware(file) for file in (ROOT / "configs" / "hardware").glob("*.yaml")}
    assert {name: gpu.name for name, gpu in files.items()} == {
        "v100-32": "V100-32",
        "a100-80": "A100-80",
        "h100-80": "H100-80",
        "h200": "H200",
    }
    assert files["v100-32"].peak_tflops.bf16 is None
    assert [gpu.memory_gib < int(gpu.name.partition("-")[2] or 141) for gpu in files.values()] == [True] * 4


def test_a_given_throughput_is_that_of_the_first_step(tmp_path: Path) -> None:
    run = config(tmp_path, "training.global_batch_size=64")
    plan = make_plan(run, Request(gpus=4, throughput=500))
    first = plan.cheapest.phases[0]
    assert plan.pairs(first) == 30 * (1000 - 100)  # 100 are held out
    assert plan.device_hours(first) == pytest.approx(4 * 30 * 900 / 500 / 3600)
    second = plan.dearest.phases[3]
    assert plan.pairs(second) == 26 * (3000 - 200)
    ratio = plan.steps.pair_flops(second.architecture) / plan.steps.pair_flops(S1)
    assert plan.device_hours(second) == pytest.approx(4 * 26 * 2800 / (500 / ratio) / 3600)
    assert plan.speed is not None
    assert plan.speed.source.startswith("from the given 500 pairs/s on 4 GPUs")


def test_hours_by_the_clock_are_those_of_a_gpu(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, "training.global_batch_size=64"), Request(gpus=4, throughput=500))
    path = plan.to_json()["paths"]["dearest"]
    assert path["phases"][0]["hours"] == pytest.approx(30 * 900 / 500 / 3600)
    assert path["phases"][0]["iterations"] == -(-30 * 900 // 64)
    assert [step["hours"] for step in path["steps"]] == pytest.approx(
        [plan.hours(*(phase for phase in plan.dearest.phases if phase.step == step)) for step in (1, 2, 3)]
    )
    assert path["hours"] == pytest.approx(sum(phase["hours"] for phase in path["phases"]))
    assert path["hours"] == pytest.approx(path["device_hours"] / 4)


def test_the_disk_holds_all_weights_and_the_checkpoints_of_the_largest_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(config(tmp_path, "checkpoint.keep_last=3"), Request())
    elements = [plan.steps.parameters(phase.architecture) + 1 for phase in plan.dearest.phases]
    needed = plan.to_json()["paths"]["dearest"]["disk_bytes"]
    assert needed == {
        "weights": 4 * sum(elements),
        "checkpoint": 12 * max(elements),
        "checkpoints": 4,
        "peak": 4 * sum(elements) + 4 * 12 * max(elements),
    }
    assert main(["plan", "--config", str(tmp_path / "config.yaml")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Disk, on the most expensive path: {needed['weights'] / 2**30:.2f} GiB of weights" in text
    assert "checkpoints, 3 of 3.96 GiB (checkpoint.keep_last 2, and the one that is being written)" in text


def test_a_utilisation_is_of_the_gpus_peak(tmp_path: Path) -> None:
    request = Request(deepspeed=ZERO2, hardware=H100, gpus=4, utilisation=0.25)
    plan = make_plan(config(tmp_path), request)
    assert plan.speed is not None
    assert plan.speed.flops == pytest.approx(0.25 * 989.5e12)
    assert "assumed" in plan.speed.source


def test_a_measured_speed_is_a_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    planned = config(tmp_path)
    (run / "config.yaml").write_text(planned.to_yaml())
    record = phase_record(
        architecture=Architecture(0, 2, 2, 2, 2, 0),
        seconds=20.0,
        device_seconds=40.0,
        training=training(pairs_seen=8000, device="H200"),
    )
    RunFolder(run).finish(record)
    plan = make_plan(planned, Request(measured=run))
    assert plan.speed is not None
    pair = plan.steps.pair_flops(Architecture(0, 2, 2, 2, 2, 0))
    assert plan.speed.flops == pytest.approx(8000 / 20 / 2 * pair)
    assert plan.speed.source.startswith(f"measured: {run}, growth step 1, 200.0 pairs/s per rank")
    assert plan.speed.source.endswith(" on H200")
    of_a_clip = make_plan(config(tmp_path, "method=tfs"), Request(measured=run))  # on the same GPUs
    assert of_a_clip.speed == plan.speed
    RunFolder(run).finish(replace(record, kind="clip"))  # whose operations are others
    assert main(["plan", "--config", str(tmp_path / "config.yaml"), "--measured", str(run)]) == 2


def test_what_fits_is_the_largest_that_does(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path), Request(deepspeed=FP16, hardware=V100, gpus=2))
    model = plan.dearest.architectures[-1]
    room = 0.9 * plan.hardware.memory_bytes

    def peak(stage: int, pairs: int) -> float:
        load = Load(pairs, 768 // pairs, 25, 1536)
        return memory(model, ModelSizes(), Sharding.of(plan.deepspeed, 2).at_stage(stage), load).peak

    for stage in plan.stages(model):
        pairs = stage.largest_micro_batch
        larger = min(n for n in range(pairs + 1, 769) if 768 % n == 0)
        assert peak(stage.stage, pairs) <= room < peak(stage.stage, larger)


def test_a_limit_below_the_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_parameters is 1,000, but model.base .* has 30,"):
        make_plan(config(tmp_path, "growth.max_parameters=1000"), Request())


def test_prints_and_writes_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(tmp_path)
    out = tmp_path / "plan.json"
    arguments = ["plan", "--config", str(tmp_path / "config.yaml"), "--deepspeed_config", ZERO2, "--hardware", H100]
    arguments += ["--gpus", "16", "--utilisation", "0.3", "--candidates", "--json", str(out)]
    assert main([*arguments, "growth.max_parameters=100_000_000"]) == 0
    text = capsys.readouterr().out
    assert text.count("too large") >= 10
    assert "64 candidates from (0, 6, 6, 6, 4, 0)" in text
    assert "assumed: 30% of H100-80's peak in bf16" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "…" not in text
    plan = json.loads(out.read_text())
    (first, *_), (second, *_) = plan["steps"][1]["candidates"], plan["steps"][2]["candidates"]
    assert len(first["candidates"]) == len(second["candidates"]) == 64
    assert {row["within_limit"] for row in first["candidates"]} == {True, False}
    stages = plan["steps"][0]["models"]["dearest"]["stages"]
    assert [stage["stage"] for stage in stages] == [1, 2, 3]
    assert stages[0]["memory_bytes"]["optimizer"] == pytest.approx(12 * 30.03e6 / 16, rel=1e-3)
    cheap, dear = (plan["paths"][name]["device_hours"] for name in ("cheapest", "dearest"))
    assert 0 < cheap < dear


def test_host_memory_is_shown_where_something_is_offloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(tmp_path)
    arguments = ["plan", "--config", str(tmp_path / "config.yaml"), "--hardware", H100, "--deepspeed_config"]
    assert main([*arguments, OFFLOAD]) == 0
    text = capsys.readouterr().out
    assert re.search("sent +host +fit$", text, re.MULTILINE)
    assert "Host: main memory per rank" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert main([*arguments, ZERO2]) == 0
    text = capsys.readouterr().out
    assert re.search("sent +fit$", text, re.MULTILINE)
    assert "Host:" not in text


def test_a_script_reads_the_plan_from_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(tmp_path)
    assert main(["plan", "--config", str(tmp_path / "config.yaml"), "--throughput", "100", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "growclip"
    assert not Path("-").exists()


def test_what_is_not_known_is_said_and_not_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(tmp_path)
    assert main(["plan", "--config", str(tmp_path / "config.yaml"), "data.subsets.1.samples=null"]) == 0
    text = capsys.readouterr().out
    assert "append data.subsets.1.samples=NUMBER" in text
    assert "No speed is known" in text


def test_a_fixed_clip_has_operations_but_no_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(tmp_path)
    out = tmp_path / "plan.json"
    assert main(["plan", "--config", str(tmp_path / "config.yaml"), "--json", str(out), "method=tfs"]) == 0
    assert "Memory of transformers' CLIP is not modelled" in capsys.readouterr().out
    assert json.loads(out.read_text())["paths"]["dearest"]["parameters"] == [None] * 3  # nor counted as a GrowCLIP's


def test_the_repositorys_configurations_can_be_planned() -> None:
    for name in ("demo", "openstax"):
        plan = make_plan(load_config(ROOT / "configs" / f"{name}.yaml"), Request(gpus=2, throughput=10))
        assert plan.to_json()["paths"]["dearest"]["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus must be a number greater than 0, not 0"),
        (["--utilisation", "0.3"], "--utilisation is a fraction of a GPU's peak: name the GPU"),
        (["--utilisation", "30", "--hardware", H100], "--utilisation is a fraction of the peak, at most 1, not 30"),
        (["--throughput", "-1"], "--throughput must be a number greater than 0, not -1"),
        (["--throughput", "inf"], "--throughput must be a number greater than 0, not inf"),
        (["--throughput", "nan"], "--throughput must be a number greater than 0, not nan"),
        (["--caption-tokens", "1e400"], "--caption-tokens must be a number greater than 0, not inf"),
        (["--caption-tokens", "1"], "--caption-tokens includes start and end of text, so it is at least 2, not 1"),
        (["--gpus", "9" * 24], "exceeds the 1536 pairs of a global batch; use fewer"),
        (["--json", "."], ". is a folder; name a file in it"),
        (["--json", ""], ". is a folder; name a file in it"),
        (["--json", "n" * 300], "cannot be written (File name too long); name another place"),
        (["--measured", "nowhere"], "nowhere holds no run"),
        (["--hardware", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["--hardware", V100, "--deepspeed_config", ZERO2], "V100-32 has no bf16; use fp16"),
        (["--gpus", "7"], "7 ranks cannot divide training.global_batch_size 1536"),
        (["--deepspeed_config", "nowhere.json"], "there is no DeepSpeed file nowhere.json"),
        (["selection.held_out=1000"], "1000 pairs are to be held out of data subset 's0', which has 1000; lower"),
        (["method=twp", "baselines.start=clip"], "baselines.start is clip, which defines its own sizes"),
        (["model.start=exported"], "exported/config.json: no such file; give a folder that `growclip export` has"),
        (["--json", "/proc/nowhere/plan.json"], "/proc/nowhere/plan.json cannot be written"),
    ],
)
def test_wrong_requests_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(tmp_path)
    assert main(["plan", "--config", str(tmp_path / "config.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("growclip: error: ")
    assert error.count("\n") == 1


def test_a_hardware_file_with_a_mistake_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(tmp_path)
    file = tmp_path / "gpu.yaml"
    file.write_text(Path(H100).read_text().replace("memory_gib: 79.1", "memory_gib: -4"))
    assert main(["plan", "--config", str(tmp_path / "config.yaml"), "--hardware", str(file)]) == 2
    assert f"{file}: memory_gib is -4; expected a number, greater than 0" in capsys.readouterr().err


def test_a_hardware_file_needs_no_bandwidths_and_may_have_them(tmp_path: Path) -> None:
    """Files from before required both."""
    file = tmp_path / "gpu.yaml"
    file.write_text("name: mine\nmemory_gib: 79.1\npeak_tflops: {fp32: 67, bf16: 989.5, fp16: 989.5}\n")
    without = load_hardware(file)
    file.write_text(file.read_text() + "memory_gb_per_s: 3350\ninterconnect_gb_per_s: 450\n")
    assert load_hardware(file) == without
