"""`growclip evaluate`: what it writes, at any number of ranks, after an interrupt, and how it says what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import CLIPConfig, CLIPModel

from growclip_ds import evaluation
from growclip_ds.checkpoint.checkpoint import load_model, write_checkpoint
from growclip_ds.cli.program import main
from growclip_ds.data.tokens import train_tokenizer
from growclip_ds.errors import InputError
from growclip_ds.evaluation.lists import read_list
from growclip_ds.evaluation.report import write_tensorboard
from growclip_ds.evaluation.stored import ResultStore
from growclip_ds.evaluation.subject import find_subject
from growclip_ds.model.spec import GrowCLIPSpec
from growclip_ds.results import RetrievalResult
from tests.evaluation import sets
from tests.evaluation.models import tokenizer, write_model, write_run
from tests.group import Groups
from tests.ranks import Ranks

LABELS = [3, 1, 4, 1, 5, 0, 2, 6, 5, 3, 5, 1, 0, 2, 2, 4, 4, 6, 0, 0, 3, 5, 1, 2, 1, 3, 3]
CAPTIONS = [f"a photo of thing {i}\nlook: {i}!" for i in range(11)]
REAL_SETS = Path(__file__).parents[3] / "shared" / "data" / "eval"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two growth steps, and two sets."""
    write_run(tmp_path / "run", 2)
    sets.write_classification_set(tmp_path / "things", LABELS, [20, 0, 7])
    pairs = [(sets.encoded(sets.picture(i)), text) for i, text in enumerate(CAPTIONS)]
    sets.write_set(tmp_path / "pairs", "retrieval", pairs, [2, 9])
    return tmp_path


def evaluate(folder: Path, *arguments: str, ranks: str = "") -> int:
    """Runs the command on both sets; each number of ranks has files of its own."""
    both = ["--sets", str(folder / "things"), str(folder / "pairs")]
    places = ["--json", str(folder / f"{ranks}.json"), "--results", str(folder / f"results{ranks}")]
    return main(["evaluate", str(folder / "run"), *both, *places, "--batch-size", "4", *arguments])


def evaluate_on_rank(folder: Path, ranks: str) -> int:
    return evaluate(folder, "--device", "cpu", ranks=ranks)


def test_a_terminal_shows_how_far_a_set_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    @contextlib.contextmanager
    def counting(what: str) -> Iterator[Callable[[int, int | None], None]]:
        yield lambda done, total: shown.append((what, done, total))

    monkeypatch.setattr("growclip_ds.data.progress.counting", counting)
    assert evaluate(folder) == 0
    pairs = [("pairs", done, 11) for done in (4, 8, 11)]
    assert shown == [("things", min(done, 27), 27) for done in range(4, 31, 4)] + pairs


def test_figures_are_the_same_at_any_number_of_ranks(
    folder: Path, group: Groups, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder) == 0
    output = capsys.readouterr()
    written = json.loads((folder / ".json").read_text())
    assert written["growth_step"] == 2
    things, pairs = written["results"]
    assert (things["dataset"], things["samples"], pairs["pictures"], pairs["captions"]) == ("things", 27, 11, 22)
    assert written["mean"] == {name: things[name] for name in ("top1", "top5", "mean_per_class")}
    assert 0 < things["top5"] < 100
    assert pairs["image_to_text"]["R@10"] > 0
    row = next(line for line in output.out.splitlines() if line.startswith(" things"))
    assert row.split() == ["things", "27", *(f"{things[k]:.1f}" for k in ("top1", "top5", "mean_per_class"))]
    for ranks in (1, 2, 3):
        assert group(ranks).run(evaluate_on_rank, folder, str(ranks)) == [0] * ranks
        assert json.loads((folder / f"{ranks}.json").read_text()) == written


def test_an_interrupted_evaluation_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[str] = []
    own = evaluation.evaluate

    def recorded(encoder: object, dataset: evaluation.RetrievalSet, *arguments: object) -> list:
        if "interrupted" in evaluated:
            raise KeyboardInterrupt
        evaluated.append(dataset.name)
        return own(encoder, dataset, *arguments)

    monkeypatch.setattr(evaluation, "evaluate", recorded)

    def run(*arguments: str) -> list[str]:
        evaluated.clear()
        assert evaluate(folder, *arguments) == 0
        return list(evaluated)

    save = ResultStore.save

    def save_and_interrupt(*arguments: object) -> None:
        save(*arguments)
        evaluated.append("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "save", save_and_interrupt)
        assert evaluate(folder) == 130
    assert run() == ["pairs"]
    first = (folder / ".json").read_text()
    assert run() == []
    assert (folder / ".json").read_text() == first
    for file in (folder / "results").glob("things*"):  # a damaged file is no result
        file.write_text(file.read_text()[:50])
    assert run() == ["things"]
    assert run("--step", "1") == ["things", "pairs"]  # other weights
    assert run("--precision", "bf16") == ["things", "pairs"]
    (folder / "things" / "classnames.txt").write_text("\n".join(reversed(sets.CLASS_NAMES)))
    assert run() == ["things"]
    pairs = [(sets.encoded(sets.picture(i)), text) for i, text in enumerate(reversed(CAPTIONS))]
    sets.write_set(folder / "pairs", "retrieval", pairs, [2, 9])
    assert run() == ["pairs"]
    assert run() == []


def test_results_into_the_runs_tensorboard(folder: Path) -> None:
    assert evaluate(folder, "--tensorboard", ranks="tb") == 0
    results = {result["dataset"]: result for result in json.loads((folder / "tb.json").read_text())["results"]}
    events = EventAccumulator(str(folder / "run" / "tensorboard" / "evaluation")).Reload()
    for tag, value in {
        "zero_shot/things": results["things"]["top1"],
        "zero_shot/mean": results["things"]["top1"],
        "zero_shot_mean_per_class/things": results["things"]["mean_per_class"],
        "zero_shot_text_to_image_R5/pairs": results["pairs"]["text_to_image"]["R@5"],
    }.items():
        (event,) = events.Scalars(tag)
        assert (event.step, event.value) == (2, pytest.approx(value))


def test_the_mean_in_tensorboard_is_that_of_training(tmp_path: Path) -> None:
    """Of retrieval sets, where there are no others."""
    recalls = [{1: 10.0, 5: 20.0, 10: 30.0}, {1: 20.0, 5: 30.0, 10: 40.0}]
    write_tensorboard(tmp_path, [RetrievalResult(name, 9, 9, *recalls) for name in ("pairs", "others")], step=2)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Scalars("zero_shot/mean")
    assert (event.step, event.value) == (2, 15.0)


def test_a_run_is_evaluated_on_the_sets_that_it_reports(folder: Path) -> None:
    assert main(["evaluate", str(folder / "run"), "--step", "1", "--json", str(folder / "out.json")]) == 0
    written = json.loads((folder / "out.json").read_text())
    assert ([result["dataset"] for result in written["results"]], written["growth_step"]) == (["things"], 1)
    assert list((folder / "run" / "step_1" / "train" / "evaluation").glob("things-*.json"))


def test_a_run_is_evaluated_under_its_names_and_on_its_splits(folder: Path) -> None:
    shutil.copytree(folder / "things", folder / "others")
    (folder / "others" / "test").rename(folder / "others" / "val")
    config = folder / "run" / "config.yaml"
    listed = f"[{{name: Things, path: {folder}/things}}, {{path: {folder}/others, split: val}}]"
    config.write_text(re.sub(r"datasets: .*(?=}$)", f"datasets: {listed}", config.read_text(), flags=re.MULTILINE))
    assert main(["evaluate", str(folder / "run"), "--json", str(folder / "out.json")]) == 0
    results = json.loads((folder / "out.json").read_text())["results"]
    assert [(result["dataset"], result["samples"]) for result in results] == [("Things", 27), ("others-val", 27)]


def test_a_script_reads_the_results_from_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder / "run"), "--step", "1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["dataset"] == "things"


def test_a_checkpoint_without_a_run(folder: Path) -> None:
    model = write_model(folder / "alone" / "weights", seed=2)
    tokenizer().save(folder / "alone" / "tokenizer")
    line = ["--sets", str(folder / "things"), "--json"]
    assert main(["evaluate", str(model), *line, str(folder / "a.json")]) == 0
    assert main(["evaluate", str(folder / "run"), *line, str(folder / "b.json")]) == 0
    alone, in_run = (json.loads((folder / name).read_text()) for name in ("a.json", "b.json"))
    assert alone["results"] == in_run["results"]
    assert alone["weights"] == in_run["weights"]


def write_clip(folder: Path) -> Path:
    words = tokenizer()
    tower = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    text = {
        "vocab_size": words.vocab_size,
        "max_position_embeddings": 24,
        "eos_token_id": words.end_of_text,
        "bos_token_id": None,
    }
    vision = {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=16)).save_pretrained(
        folder
    )
    words.save(folder)
    return folder


def test_a_model_of_transformers_has_its_own_tokenizer(folder: Path) -> None:
    """Not that of a run in whose folder it happens to lie."""
    subject = find_subject(write_clip(folder / "run" / "clip"))
    train_tokenizer(["others"] * 20, 270, 24).save(folder / "run" / "tokenizer")
    words = tokenizer()
    sizes = replace(load_model(folder / "run/step_1/train/weights").sizes, vocab_size=words.vocab_size)
    assert subject.tokenizer(None, sizes, words.end_of_text).vocab_size == words.vocab_size


def test_a_clip_checkpoint_of_transformers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(folder / "clip")
    assert main(["evaluate", str(clip), "--sets", str(folder / "things"), "--json", str(folder / "c.json")]) == 0
    assert json.loads((folder / "c.json").read_text())["results"][0]["samples"] == 27
    config = clip / "config.json"
    good = config.read_text()
    capsys.readouterr()
    for text, message in (
        (good.replace('"patch_size": 8', '"patch_size": 4'), r"model\.safetensors: vision_model\S+ has shape .* needs"),
        (good.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'), r"tensors are in no \*\.safetensors"),
        (good[:50], r"config\.json: not the configuration of a CLIP model"),
        (good.replace('"model_type": "clip"', '"model_type": "siglip"'), r"of a CLIP model \(its model_type is 'sig"),
    ):
        config.write_text(text)
        assert main(["evaluate", str(clip), "--sets", str(folder / "things")]) == 2
        assert re.search(message, capsys.readouterr().err)


def other_shape(folder: Path) -> None:
    weights = folder / "run" / "step_2" / "train" / "weights"
    model = load_model(weights)
    shutil.rmtree(weights)
    tensors = dict(model.named_parameters())
    larger = replace(model.architecture, image_blocks=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    description = GrowCLIPSpec(larger, model.sizes, model.end_of_text).describe()
    write_checkpoint(weights, tensors.items(), shapes, lambda _: 0, description)


def damaged(folder: Path) -> None:
    (file,) = (folder / "run" / "step_2" / "train" / "weights").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def other_tokenizer(vocab_size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / "run" / "tokenizer")
        words = ["entirely different words for another vocabulary, which is larger"] * 3
        train_tokenizer(words, vocab_size, 24).save(folder / "run" / "tokenizer")

    return change


WRONG = {
    "checkpoint of another shape": (other_shape, [], r"weights: image\.blocks\.1\.\S+ is missing, but .* needs"),
    "damaged weights": (damaged, [], r"is damaged \(its checksum differs\); copy the checkpoint again"),
    "no tokenizer": (
        lambda folder: shutil.rmtree(folder / "run" / "tokenizer"),
        [],
        r"no tokenizer in .*; name the one that the model was trained with \(--tokenizer\)",
    ),
    "a larger tokenizer": (other_tokenizer(310), [], r"name the tokenizer that it was trained with \(--tokenizer\)"),
    "a smaller tokenizer": (other_tokenizer(270), [], r"name the tokenizer that it was trained with \(--tokenizer\)"),
    "a step that is not trained": (None, ["--step", "3"], "growth step 3 is not trained; --step can be 1, 2"),
    "class names missing": (
        lambda folder: (folder / "things" / "classnames.txt").unlink(),
        [],
        r"things/classnames\.txt: no such file; the set needs it",
    ),
    "batch size": (None, ["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
    "root without a list": (
        None,
        ["--root", "x"],
        r"--root is where the sets of a list are; name the list \(--config\)",
    ),
    "no GPU": (
        None,
        ["--device", "cuda"],
        "there is no GPU for rank 0 of this machine, which has 0: start fewer ranks, or use --device cpu",
    ),
}


@pytest.mark.parametrize(("spoil", "arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object] | None,
    arguments: list[str],
    message: str,
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if spoil is not None:
        spoil(folder)
    assert evaluate(folder, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("growclip: error: ")
    assert output.err.count("\n") == 1
    assert re.search(message, output.err)


def test_that_results_cannot_be_kept_shows_before_any_is_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("evaluated"))
    (folder / "file").write_text("")
    assert evaluate(folder, "--results", str(folder / "file" / "results")) == 2
    assert "cannot be written (Not a directory); name another folder for results" in capsys.readouterr().err


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    subject = find_subject(folder / "run")
    model = subject.load()
    assert subject.tokenizer(None, model.sizes, model.end_of_text).vocab_size == model.sizes.vocab_size
    with pytest.raises(InputError, match=r"has 288 tokens and .* 287, but .* has 287 and 287; name the tokenizer"):
        subject.tokenizer(None, replace(model.sizes, vocab_size=287), model.end_of_text)


def test_what_is_no_model_or_no_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, things = str(folder / "run" / "step_1" / "train" / "weights"), str(folder / "things")
    for line, message in (
        ([str(folder), "--sets", things], f"{folder} holds no checkpoint and no run"),
        ([str(folder / "none"), "--sets", things], "none is not a folder"),
        ([model, "--sets", things, "--step", "1"], "is a checkpoint and has no growth steps"),
        ([str(write_clip(folder / "clip")), "--sets", things, "--step", "1"], "is a single model in Hugging Face"),
        ([str(write_model(folder / "alone"))], "no sets to evaluate on; name some (--sets)"),
        (
            [model, "--sets", things, things],
            "two sets are called 'things'; give them different names in a list (--config)",
        ),
        ([str(folder / "alone"), "--sets", things, "--tensorboard"], "does not belong to a run; name the folder"),
    ):
        assert main(["evaluate", *line]) == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(folder / "run" / "step_1")
    shutil.rmtree(folder / "run" / "step_2")
    assert main(["evaluate", str(folder / "run")]) == 2
    assert "no growth step is trained yet" in capsys.readouterr().err


def test_the_papers_list_from_a_root_of_copies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper = Path(__file__).parents[2] / "configs" / "eval" / "paper.yaml"
    (folder / "sets").mkdir()
    for one in read_list(paper).sets:
        kind = "pairs" if one.name in ("Flickr30K", "MSCOCO") else "things"
        (folder / "sets" / one.path).symlink_to(folder / kind)
    line = ["--config", str(paper), "--root", str(folder / "sets"), "--json", str(folder / "out.json")]
    assert main(["evaluate", str(folder / "run"), *line]) == 0
    written = json.loads((folder / "out.json").read_text())
    assert [result["type"] for result in written["results"]] == ["classification"] * 9 + ["retrieval"] * 2
    assert written["mean"]["top1"] == pytest.approx(written["results"][0]["top1"])
    assert "mean of 9" in capsys.readouterr().out


@pytest.mark.skipif(not REAL_SETS.exists(), reason="needs ../shared/data/eval")
def test_a_list_laid_out_as_the_papers(folder: Path) -> None:
    """Real pictures in CLIP-benchmark's layout, under a root, by the names that a list gives them."""
    listed = folder / "list.yaml"
    listed.write_text(
        f"root: {REAL_SETS}\nsets: [{{name: Groceries, path: grocery_zeroshot}}, "
        "{name: Anthropology, path: openstax_anthropology_retrieval}]"
    )
    assert main(["evaluate", str(folder / "run"), "--config", str(listed), "--json", str(folder / "out.json")]) == 0
    groceries, anthropology = json.loads((folder / "out.json").read_text())["results"]
    assert (groceries["dataset"], groceries["samples"]) == ("Groceries", 2485)
    assert (anthropology["pictures"], anthropology["captions"]) == (327, 654)


def test_the_script_of_a_job_is_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm tells it how many tasks the job may have; only what srun starts is one of them."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    line = ["evaluate", str(folder / "run"), "--sets", str(folder / "pairs"), "--device", "cpu"]
    assert main(line) == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert main(line) == 2


def raise_on_rank_1(folder: Path, error: Exception, rank: int) -> None:
    """In the evaluation; what each rank writes to stderr goes to a file of its own."""
    os.dup2(os.open(folder / f"stderr{rank}", os.O_WRONLY | os.O_CREAT), 2)
    if rank == 1:
        mock.patch.object(evaluation, "evaluate", side_effect=error).start()


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (MemoryError("no more"), "things: rank 1 ran out of memory (no more); lower --batch-size (now 256)", 2),
        (KeyError("x"), "rank 1 failed: KeyError: 'x'", 1),
    ],
)
def test_an_error_on_one_rank_is_said_and_ends_all(folder: Path, error: Exception, said: str, code: int) -> None:
    arguments = ["evaluate", str(folder / "run"), "--sets", str(folder / "things"), "--device", "cpu"]
    ranks = Ranks(arguments, folder / "log", partial(raise_on_rank_1, folder, error), program=main)
    codes = ranks.wait()
    texts = [(folder / f"stderr{rank}").read_text() for rank in range(2)]
    assert codes == [code, code], texts
    assert f"growclip: error: {said}" in texts[1]
    assert "error" not in texts[0]


def test_ranks_leave_their_group_in_good_order(folder: Path) -> None:
    """Its threads, ended by the interpreter's end, abort one process in ten or twenty."""
    call = f"main(['evaluate', {str(folder / 'run')!r}, '--sets', {str(folder / 'pairs')!r}, '--device', 'cpu'])"
    script = f"import torch.distributed as dist; from growclip_ds.cli.program import main; code = {call}; "
    script += "import sys; sys.exit(code or dist.is_initialized())"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
