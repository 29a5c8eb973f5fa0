"""`growclip export`: what the folder says of the model, that it appears whole or not at all, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, CLIPModel

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.baselines.clip import clip_config
from growclip_ds.baselines.spec import CLIPSpec
from growclip_ds.checkpoint.checkpoint import load_model, save_model, write_checkpoint
from growclip_ds.cli.program import main
from growclip_ds.data.tokens import train_tokenizer
from growclip_ds.errors import InputError
from growclip_ds.evaluation.stored import ResultStore
from growclip_ds.evaluation.subject import find_subject
from growclip_ds.hub import export as hub_export
from growclip_ds.hub.export import export
from growclip_ds.run.records import described
from tests.evaluation import sets
from tests.evaluation.models import TEXTS, tokenizer, write_model
from tests.hub.models import ARCHITECTURES, RESULTS, growclip, write_recorded_run
from tests.records import phase_record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_recorded_run(tmp_path / "run")


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command refuses, having left nothing behind."""
    assert main(["export", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    output = Path(str(arguments[1]))
    assert not list(output.parent.glob(f".{output.name}.*"))
    return captured.err


def test_a_run_becomes_a_folder_with_its_history(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run.parent / "out"
    assert main(["export", str(run), str(output), "--license", "CC-BY-4.0"]) == 0
    assert str(output) in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "config.json",
        "configuration_growclip.py",
        "image_processing_growclip.py",
        "model.safetensors",
        "modeling_growclip.py",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model, trained = AutoModel.from_pretrained(output), load_model(run / "step_2" / "train" / "weights")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    assert [(step["step"], step["samples"]) for step in model.config.growth] == [(1, 1000), (2, 3000)]
    assert model.config.growth[1]["architecture"]["text_heads"] == 2

    card = ModelCard.load(output / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert (card.data.pipeline_tag, card.data.library_name) == ("zero-shot-image-classification", "transformers")
    assert "growclip" in card.data.tags
    assert [(one.dataset_name, one.metric_value) for one in card.data.eval_results] == [
        ("things", 31.42),
        ("others", 11),
    ]
    lines = card.text.splitlines()
    assert "| 1 | (1, 1, 1, 1, 1, 1) |  | 0.10 M | 1,000 |" in lines
    assert "| 2 | (1, 1, 1, 1, 2, 1) | h^T | 0.20 M | 3,000 |" in lines
    assert "| subset 2 | 2,000 |" in lines
    assert "| all | 3,000 |" in lines
    assert "subset 3" not in card.text  # which had not arrived
    assert "secret" not in card.text
    assert "| things | 27 | 31.4 | 71.0 | 29.5 |" in lines
    assert "| mean of 2 |  | 21.2 | 51.0 | 20.8 |" in lines
    assert "| pairs | 11 | 22 | 9.1 | 45.5 | 90.9 | 4.5 | 22.7 | 45.5 |" in lines
    assert "With transformers 5:" in lines


def test_a_step_may_be_chosen(run: Path) -> None:
    assert main(["export", str(run), str(run.parent / "out"), "--step", "1"]) == 0
    model, trained = AutoModel.from_pretrained(run.parent / "out"), load_model(run / "step_1" / "train" / "weights")
    assert torch.equal(model.text.embedding.tokens, trained.text.embedding.tokens)
    assert len(model.config.growth) == 1
    card = ModelCard.load(run.parent / "out" / "README.md")
    assert card.data.license == "unknown"
    assert "| all | 1,000 |" in card.text
    assert "architecture can grow with its data" in card.text  # it has not grown yet, and a fixed GrowCLIP never does


def test_later_evaluations_take_the_place_of_the_runs(run: Path) -> None:
    subject = find_subject(run)

    class Set:
        name, identity = "things", "x"

    better = RESULTS[0].__class__("things", 27, 77.7, 88.8, 66.6)
    folder = subject.folder.parent / "evaluation"
    ResultStore(folder, subject.digest, "t", "fp32").save(Set(), better)
    ResultStore(folder, subject.digest, "t", "bf16").save(Set(), RESULTS[0])
    (in_bf16,) = (file for file in folder.iterdir() if "bf16" in file.read_text())
    shutil.copy(in_bf16, folder / "zz.json")  # read last
    ResultStore(folder, "another model's", "t", "fp32").save(Set(), RESULTS[0])
    (folder / "damaged.json").write_text("{")
    assert main(["export", str(run), str(run.parent / "out")]) == 0
    card = (run.parent / "out" / "README.md").read_text()
    assert "| things | 27 | 77.7 | 88.8 | 66.6 |" in card.splitlines()
    assert "31.4" not in card
    assert "| others | 1,500 |" in card


def test_a_baselines_run_becomes_a_plain_clip(run: Path) -> None:
    words = tokenizer()
    sizes = ModelSizes(words.vocab_size, 24, image_size=32, embed_dim=16)
    spec = CLIPSpec(clip_config(Architecture(0, 1, 1, 1, 2, 0), sizes, words.end_of_text))
    weights = run / "step_2" / "train" / "weights"
    shutil.rmtree(weights)
    description = spec.describe() | {"growth_step": 2}
    write_checkpoint(weights, spec.initial(0), spec.shapes, lambda _: 0, description)
    record = json.loads((weights.parent / "phase.json").read_text())
    record["model"] = {"kind": spec.kind, "architecture": asdict(spec.architecture)}
    (weights.parent / "phase.json").write_text(json.dumps(record))
    assert main(["export", str(run), str(run.parent / "out")]) == 0
    model = AutoModel.from_pretrained(run.parent / "out")
    assert type(model) is CLIPModel
    trained = load_model(weights)
    assert torch.equal(model.text_projection.weight, trained.text_projection.weight)
    card = (run.parent / "out" / "README.md").read_text()
    assert "| 2 | (0, 1, 1, 1, 2, 0) |" in card
    assert "| things | 27 | 31.4 | 71.0 | 29.5 |" in card.splitlines()
    assert "trust_remote_code" not in card


def test_a_step_that_is_not_evaluated_yet_says_so(run: Path) -> None:
    (run / "step_2" / "train" / "phase.json").unlink()
    shutil.rmtree(run / "step_2" / "train" / "weights")
    record = phase_record(2, samples=3000, parameters=123_456, architecture=Architecture(1, 1, 1, 1, 2, 1))
    write_model(run / "step_2" / "train" / "weights", seed=2, **described(record))
    assert main(["export", str(run), str(run.parent / "out")]) == 0
    card = (run.parent / "out" / "README.md").read_text()
    assert "| 2 | (1, 1, 1, 1, 2, 1) | h^T | 0.12 M | 3,000 |" in card.splitlines()
    assert "Not evaluated." in card


def test_a_checkpoint_alone_has_no_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "weights")
    assert "no tokenizer in" in error_of(capsys, tmp_path / "weights", tmp_path / "out")
    tokenizer().save(tmp_path / "words")
    assert (
        main(["export", str(tmp_path / "weights"), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "words")]) == 0
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Growth" not in card
    assert "## Training data" not in card


def test_large_models_have_several_files_and_an_index(tmp_path: Path) -> None:
    model = growclip(ARCHITECTURES[1])
    export(model, tokenizer(), tmp_path / "out", max_shard_bytes=2_200_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(4 * parameter.numel() for parameter in model.parameters())
    assert all((tmp_path / "out" / file).stat().st_size < 2_220_000 for file in files)
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_only_an_earlier_export_is_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run.parent / "out"
    output.mkdir()  # empty is as good as none
    assert main(["export", str(run), str(output), "--step", "1"]) == 0
    first = (output / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert "exists already; name another folder, or replace it (--force)" in error_of(capsys, run, output)
    assert (output / "model.safetensors").read_bytes() == first
    assert main(["export", str(run), str(output), "--force"]) == 0
    assert (output / "model.safetensors").read_bytes() != first
    capsys.readouterr()
    (output / "thesis.tex").touch()
    assert "is not an exported model (it holds thesis.tex), so it is not replaced" in error_of(
        capsys, run, output, "--force"
    )
    assert "it holds config.yaml" in error_of(capsys, run, run, "--force")
    (run.parent / "file").write_text("x")
    assert "it holds file" in error_of(capsys, run, run.parent / "file", "--force")


def test_it_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, output = growclip(ARCHITECTURES[0]), tmp_path / "out"
    export(model, tokenizer(), output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def full(*_: object) -> str:
        assert (tmp_path / "out").exists()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:  # the last thing that can go wrong
        move = Path.replace

        def refuse(path: Path, target: Path) -> Path:
            if path.suffix == ".partial" and target == output:
                raise OSError(116, "Stale file handle")
            return move(path, target)

        patched.setattr(Path, "replace", refuse)
        with pytest.raises(InputError, match=r"cannot be written: .*Stale file handle"):
            export(growclip(ARCHITECTURES[1]), tokenizer(), output, replace=True)
        assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    monkeypatch.setattr(hub_export, "model_card", full)
    for place, replace in ((output, True), (tmp_path / "new", False)):
        with pytest.raises(InputError, match=r"cannot be written: .*No space left on device"):
            export(growclip(ARCHITECTURES[1]), tokenizer(), place, replace=replace)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_what_cannot_be_exported_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run.parent / "out"
    assert "growth step 3 is not trained; --step can be 1, 2" in error_of(capsys, run, output, "--step", "3")
    assert "holds no checkpoint and no run" in error_of(capsys, run.parent, output)
    assert "is not a licence identifier" in error_of(capsys, run, output, "--license", "my own: yes")
    (weights,) = (run / "step_2" / "train" / "weights").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    assert "is damaged (its checksum differs)" in error_of(capsys, run, output)
    weights.write_bytes(data[:-1])
    assert "the checkpoint is incomplete" in error_of(capsys, run, output)
    for step in (1, 2):
        shutil.rmtree(run / f"step_{step}")
    assert "no growth step is trained yet" in error_of(capsys, run, output)
    assert not output.exists()


def test_what_is_exported_is_evaluated_as_the_run_is(run: Path) -> None:
    sets.write_classification_set(run.parent / "things", [3, 1, 4, 1, 5, 0, 2, 6, 5], [9])
    assert main(["export", str(run), str(run.parent / "out")]) == 0
    found = []
    for model in (run, run.parent / "out"):
        report = run.parent / f"{model.name}.json"
        places = ["--results", str(run.parent / f"results-{model.name}"), "--json", str(report)]
        sets_of_it = ["--sets", str(run.parent / "things")]
        assert main(["evaluate", str(model), *sets_of_it, *places, "--device", "cpu"]) == 0
        found.append(json.loads(report.read_text()))
    of_run, of_export = found
    assert of_run.pop("model") != of_export.pop("model")
    assert of_run == of_export  # the digest of the weights too


def test_another_models_tokenizer_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(TEXTS, 270, 24).save(run.parent / "words")
    message = error_of(capsys, run, run.parent / "out", "--tokenizer", run.parent / "words")
    assert "name the tokenizer that it was trained with" in message


def test_a_script_learns_what_was_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run.parent / "out"
    assert main(["export", str(run), str(output), "--json", "-"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["output"], values["growth_step"], values["license"]) == (str(output), 2, "unknown")
    assert values["weights"] == find_subject(run).digest == find_subject(output).digest
    assert [step["samples"] for step in values["growth"]] == [1000, 3000]


def test_an_export_of_an_export_keeps_the_growth(run: Path) -> None:
    first, second = run.parent / "first", run.parent / "second"
    assert main(["export", str(run), str(first)]) == 0
    assert main(["export", str(first), str(second)]) == 0
    growth = [json.loads((folder / "config.json").read_text())["growth"] for folder in (first, second)]
    assert growth[0] == growth[1]
    assert len(growth[0]) == 2


def test_a_supernet_is_not_passed_off_as_the_steps_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "step_2" / "finetune" / "weights"
    save_model(load_model(run / "step_2" / "train" / "weights"), folder, growth_step=2, phase="finetune")
    error = error_of(capsys, folder.parent, run.parent / "out")
    assert "holds the supernet of the finetune phase, not the model of a growth step" in error
    assert f"give the run, or {run / 'step_2' / 'train'}" in error


def test_a_finished_step_without_weights_is_not_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "step_2" / "train" / "weights")
    error = error_of(capsys, run, run.parent / "out")
    assert "growth step 2 is finished, but its weights are missing" in error
    assert "or use another step (--step 1)" in error
    assert main(["export", str(run), str(run.parent / "out"), "--step", "1"]) == 0


@pytest.mark.parametrize("text", ["{}", "[]", '{"seconds": 1}'])
def test_a_damaged_record_is_one_line(run: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "step_1" / "train" / "phase.json"
    file.write_text(text)
    assert f"{file} is damaged: " in error_of(capsys, run, run.parent / "out")


def test_a_name_that_is_too_long(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), str(run.parent / ("n" * 300))]) == 2
    assert "cannot be written (File name too long); name another folder" in capsys.readouterr().err
