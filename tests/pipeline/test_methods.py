"""Every method and ablation as whole runs of two growth steps on two ranks.

Most runs have a learning rate that moves nothing: what a phase leaves is then what it started from.
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from growclip_ds import Architecture, GrowthSpace
from growclip_ds.architecture import ModelSizes
from growclip_ds.baselines.clip import FixedCLIP, clip_config
from growclip_ds.baselines.spec import CLIPSpec
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.config.config import load_config
from growclip_ds.data.tokens import load_tokenizer
from growclip_ds.errors import InputError
from growclip_ds.evaluation import ModelEncoder, evaluate, load_evaluation_set
from growclip_ds.evaluation.subject import find_subject
from growclip_ds.growth.inheritance import PIM, inherited_tensors
from growclip_ds.growth.phases import Phase
from growclip_ds.model.spec import GrowCLIPSpec, ModelSpec
from growclip_ds.monitor import read_summaries
from growclip_ds.pipeline.recipes import FixedRecipe, fixed_model
from growclip_ds.run.folder import RunFolder
from growclip_ds.seeds import named_seed
from tests.group import Groups
from tests.pipeline_runs import TIMES, assert_same_weights, grow, grow_until, read_weights

BASE = Architecture(0, 1, 1, 1, 1, 0)
SPACE = GrowthSpace(BASE, 1, 1, 1)
INHERITED, PLAIN = PIM(0.3, 0.001), PIM(1.0, 0.0)
SHORT = ("epochs.first=1", "epochs.selected=1", "evaluation.datasets=[]")
STILL = (*SHORT, "training.learning_rate=1e-30", "training.weight_decay=0.0")

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def data(finished_data: Path) -> Path:
    return finished_data


def architecture(of: Architecture) -> str:
    return f"baselines.architecture={json.dumps(dict(of.items()))}"


CLIP = architecture(Architecture(0, 2, 1, 1, 1, 0))


def spec_of(run: RunFolder, step: int, phase: Phase = Phase.TRAIN) -> ModelSpec:
    return Checkpoint(run.weights(step, phase)).spec


def assert_unmoved(found: Tensors, start: Any) -> None:
    """What a phase left is what it started from, but for the steps of a vanishing learning rate."""
    start = dict(start)
    assert list(found) == list(start)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, start[name], rtol=1e-6, atol=1e-20, msg=name)


def assert_same_runs(run: RunFolder, other: RunFolder) -> None:
    places = [(record.step, record.phase) for record in run.records()]
    assert places == [(record.step, record.phase) for record in other.records()]
    assert_same_weights(run, other, places)


def phases(run: RunFolder) -> list[tuple[int, str, int]]:
    """Those that were run, with their iterations; step 1 has 3 iterations an epoch, step 2 has 6."""
    return [(record.step, str(record.phase), record.iterations) for record in run.records()]


@pytest.mark.parametrize(
    ("method", "stage"),
    [("sap", 3), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("tfs", 1), ("twp", 2)))],
)
def test_starts_of_the_fixed_clip(data: Path, group: Groups, tmp_path: Path, method: str, stage: int) -> None:
    run = RunFolder(tmp_path / "run")
    group(2).run(grow, data, run.path, stage, None, (*STILL, CLIP, f"method={method}"))
    assert phases(run) == [(1, "train", 3), (2, "train", 18)]
    spec = spec_of(run, 1)
    assert (spec.kind, spec.architecture) == ("clip", Architecture(0, 2, 1, 1, 1, 0))
    first, drawn = dict(spec.initial("0/1/train")), dict(spec.initial("0/2/train"))
    blended = {n: first[n] if spec.is_vector(n) else 0.3 * first[n] + 0.001 * drawn[n] for n in first}
    assert_unmoved(read_weights(run, 1, Phase.TRAIN), first)
    assert_unmoved(read_weights(run, 2, Phase.TRAIN), {"tfs": drawn, "twp": first, "sap": blended}[method])


@pytest.mark.parametrize("method", ["tfs", "twp", "sap", "msclip"])
def test_what_a_growth_step_of_a_fixed_model_starts_from(
    data: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The weights, before they are trained."""
    started: list[Tensors] = []
    monkeypatch.setattr(FixedRecipe, "_train", lambda self, step, spec, weights: started.append(dict(weights)))
    left = SimpleNamespace(read=lambda name: started[0][name])
    monkeypatch.setattr(FixedRecipe, "_weights", lambda self, step, phase: left)
    small = architecture(Architecture(0, 2, 1, 1, 1, int(method == "msclip")))
    config = load_config(data / "config.yaml", [f"method={method}", small])
    inputs = SimpleNamespace(sizes=config.model.sizes(300), tokenizer=SimpleNamespace(vocab_size=300, end_of_text=299))
    run: Any = SimpleNamespace(config=config, folder=None, inputs=inputs)
    recipe = FixedRecipe(run)
    for step in (1, 2):
        recipe.run(step, Phase.TRAIN)
    spec = fixed_model(config, inputs)
    first, drawn = dict(spec.initial("0/1/train")), dict(spec.initial("0/2/train"))
    blended = {n: first[n] if spec.is_vector(n) else 0.3 * first[n] + 0.001 * drawn[n] for n in first}
    assert_unmoved(started[0], first)
    assert_unmoved(started[1], {"tfs": drawn, "twp": first, "sap": blended, "msclip": drawn}[method])


def test_starts_of_a_fixed_growclip(data: Path, group: Groups, tmp_path: Path) -> None:
    """Table 6: an architecture that was grown, from scratch; and MS-CLIP."""
    shared = Architecture(1, 0, 1, 1, 2, 1)
    for method, more in (("sap", ("baselines.model=growclip",)), ("msclip", ("baselines.epochs=1",))):
        run = RunFolder(tmp_path / method)
        group(2).run(grow, data, run.path, 2, None, (*STILL, *more, architecture(shared), f"method={method}"))
        spec = spec_of(run, 2)
        assert (spec.kind, spec.architecture) == ("growclip", shared)
        first, drawn = dict(spec.initial("0/1/train")), dict(spec.initial("0/2/train"))
        assert_unmoved(read_weights(run, 1, Phase.TRAIN), first)
        if method == "sap":
            inherited = inherited_tensors(shared, shared, spec.sizes, first.__getitem__, INHERITED, "0/2/train")
            assert_unmoved(read_weights(run, 2, Phase.TRAIN), inherited)
        else:
            assert phases(run) == [(1, "train", 3), (2, "train", 6)]
            assert_unmoved(read_weights(run, 2, Phase.TRAIN), drawn)


def test_nas_searches_and_trains_from_scratch(data: Path, group: Groups, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    group(2).run(grow, data, run.path, 2, None, (*STILL, "baselines.epochs=1", "method=nas"))
    assert phases(run) == [(1, "train", 3), (2, "search", 6), (2, "train", 6)]
    record = run.record(2, Phase.SEARCH)
    assert {row.architecture for row in record.candidates} == set(SPACE)
    assert record.selection_set == "scenes_selection"
    assert (record.kind, record.architecture) == ("growclip", SPACE.supernet)
    assert spec_of(run, 2).architecture == record.candidates[0].architecture
    for step, phase in ((1, Phase.TRAIN), (2, Phase.SEARCH), (2, Phase.TRAIN)):
        assert_unmoved(read_weights(run, step, phase), spec_of(run, step, phase).initial(f"0/{step}/{phase}"))
    _, second = read_summaries(run)
    assert second.architecture == spec_of(run, 2).architecture
    assert len(second.candidates) == 64


ABLATIONS = {
    "neither PIM": (
        ("ablation.pim_supernet=false", "ablation.pim_selected=false", "epochs.selection=1"),
        [("finetune", 6), ("selection", 6), ("train", 6)],
    ),
    "selection left out": (("ablation.selection=false",), [("finetune", 6), ("train", 12)]),
    "supernet left out": (("ablation.finetuning=false", "ablation.selection=false", "seed=1"), [("train", 18)]),
    "fine-tuning left out": (
        ("ablation.finetuning=false", "growth.frozen=[conv_layers, text_blocks, image_blocks, shared_blocks]"),
        [("selection", 6), ("train", 12)],
    ),
    "one dimension": (("ablation.grow_only=text_heads",), [("finetune", 6), ("train", 12)]),
}


# "selection left out" shows what "supernet left out" and "one dimension" show together.
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name == "selection left out")) for name in ABLATIONS]


@pytest.mark.parametrize("name", NAMES)
def test_ablations(data: Path, group: Groups, tmp_path: Path, name: str) -> None:
    """The phases that are run, and each one's start as Eq. 5 and 8 have it."""
    overrides, expected = ABLATIONS[name]
    run = RunFolder(tmp_path / "run")
    group(2).run(grow, data, run.path, 2, None, (*STILL, *overrides))
    assert phases(run) == [(1, "train", 3), *((2, *phase) for phase in expected)]
    assert sum(iterations for _, iterations in expected) == 18
    pim, seed = PLAIN if name == "neither PIM" else INHERITED, int("seed=1" in overrides)
    chosen, sizes = spec_of(run, 2).architecture, spec_of(run, 2).sizes
    supernet = Architecture(0, 1, 1, 1, 2, 0) if name == "one dimension" else SPACE.supernet
    if name == "fine-tuning left out":
        supernet = Architecture(0, 1, 2, 1, 2, 0)
    old = read_weights(run, 1, Phase.TRAIN)
    inherited = dict(inherited_tensors(BASE, supernet, sizes, old.__getitem__, pim, f"{seed}/2/finetune"))
    for phase in (Phase.FINETUNE, Phase.SELECTION):
        if str(phase) in dict(expected):
            assert_unmoved(read_weights(run, 2, phase), inherited)
    start = inherited_tensors(chosen, chosen, sizes, inherited.__getitem__, pim, f"{seed}/2/train")
    assert_unmoved(read_weights(run, 2, Phase.TRAIN), start)
    if name == "neither PIM":
        assert torch.equal(
            inherited["image.blocks.0.mlp.expand.weight"][:256, :64], old["image.blocks.0.mlp.expand.weight"]
        )
    if name == "one dimension":
        assert chosen == supernet
    if "ablation.selection=false" in overrides:
        random = torch.Generator().manual_seed(named_seed(seed, 2, "random candidate"))
        assert chosen == SPACE.sample(random) not in (BASE, SPACE.supernet)
    _, second = read_summaries(run)
    assert second.architecture == chosen


@pytest.mark.slow
def test_a_start_that_is_large_already(data: Path, group: Groups, tmp_path: Path) -> None:
    """Table 8: what is large already may stay as it is, Eq. 7 preferring the small where accuracy is the same."""
    run = RunFolder(tmp_path / "run")
    base = "model.base={conv_layers: 1, image_blocks: 3, image_heads: 2, text_blocks: 2, text_heads: 2}"
    overrides = (*STILL, base, "model.embed_dim=24", "growth.alpha=1e6", "growth.frozen=[image_blocks, text_blocks]")
    group(2).run(grow, data, run.path, 2, None, overrides)
    assert spec_of(run, 2).architecture == Architecture(1, 3, 2, 2, 2, 0)
    assert spec_of(run, 2).sizes.embed_dim == 24


COURSE = ("baselines.epochs=1", "evaluation.every_epochs=0.5", "epochs.supernet=1")
FEW = "growth.frozen=[conv_layers, image_heads, text_heads, text_blocks]"


@pytest.mark.parametrize(
    ("method", "stage", "more"), [pytest.param("sap", 3, (CLIP,), marks=pytest.mark.slow), ("nas", 2, (FEW,))]
)
def test_evaluating_in_between_and_stopping_change_nothing(
    data: Path, group: Groups, tmp_path: Path, method: str, stage: int, more: tuple[str, ...]
) -> None:
    """Left alone, evaluated in its course, and that while stopped again and again: the same bits and the same curve."""
    plain, whole, stopped = (RunFolder(tmp_path / name) for name in ("plain", "whole", "stopped"))
    options = (f"method={method}", *more, *COURSE)
    group(2).run(grow, data, plain.path, stage, None, (*options, "evaluation.every_epochs=null"))
    group(2).run(grow, data, whole.path, stage, None, options)
    for attempts, looks in enumerate(itertools.chain([2], itertools.repeat(9)), start=1):  # noqa: B007
        # First where the model is to be evaluated, and is not: it is when the run goes on.
        if all(group(2).run(grow_until, data, stopped.path, looks, stage, None, options)):
            break
    assert attempts > 3
    assert_same_runs(plain, whole)
    assert_same_runs(whole, stopped)
    for ours, theirs in zip(whole.records(), stopped.records(), strict=True):
        assert replace(ours, **TIMES) == replace(theirs, **TIMES)
        pairs = 48 * ours.step
        assert ours.training is not None
        assert ours.training.pairs_seen == pairs
        assert ours.iterations == pairs // 16
        assert [point.iteration for point in ours.curve] == [-(-pairs // 32), pairs // 16]
        assert all(len(point.evaluation) == 2 for point in ours.curve)
        if ours.phase is Phase.TRAIN:
            assert ours.curve[-1].evaluation == ours.evaluation
    for record in plain.records():
        assert record.curve == ()
        assert record.training is not None
        assert record.training.text_tokens_seen > 3 * record.training.pairs_seen


def test_a_fixed_clip_is_evaluated_as_its_run_evaluated_it(data: Path, group: Groups, tmp_path: Path) -> None:
    """From its folder, by `transformers`' model, on one process; with its activations computed again while training."""
    run = RunFolder(tmp_path / "run")
    more = ("method=twp", CLIP, "baselines.epochs=1", "training.activation_checkpointing=on")
    group(2).run(grow, data, run.path, 3, None, more)
    subject = find_subject(run.path)
    model = subject.load()
    assert isinstance(model, FixedCLIP)
    assert subject.architecture == Architecture(0, 2, 1, 1, 1, 0)
    tokenizer = load_tokenizer(run.tokenizer, model.sizes.context_length)
    record = run.record(2, Phase.TRAIN)
    assert record.training is not None
    assert (record.training.ranks, record.training.device, record.training.kernels) == (2, "CPU", "torch")
    assert len(record.evaluation) == 2
    for reported in record.evaluation:
        dataset = load_evaluation_set(data / "scenes/eval" / reported.dataset)
        assert evaluate(ModelEncoder(model), dataset, tokenizer, 32, 16)[0] == reported
    first, second = read_summaries(run)
    assert first.architecture == second.architecture == subject.architecture


def test_a_start_from_a_checkpoint_in_hugging_face_format(data: Path, group: Groups, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    config = clip_config(Architecture(0, 1, 2, 2, 1, 0), ModelSizes(300, 16, 32, 16), end_of_text=299)
    config.vision_config.patch_size = 8
    torch.manual_seed(3)
    reference = CLIPModel(config)
    reference.save_pretrained(tmp_path / "clip")
    overrides = (*STILL, "method=twp", f"baselines.start={tmp_path / 'clip'}")
    group(2).run(grow, data, run.path, 2, 1, overrides)
    shutil.rmtree(tmp_path / "clip")  # what the first growth step has taken in
    group(2).run(grow, data, run.path, 2, None, overrides)
    expected = {name: torch.atleast_1d(p.detach()) for name, p in reference.named_parameters()}
    names = list(read_weights(run, 1, Phase.TRAIN))
    for step in (1, 2):
        assert_unmoved(read_weights(run, step, Phase.TRAIN), {name: expected[name] for name in names})


@pytest.mark.parametrize(
    ("sizes", "overrides", "message"),
    [
        (ModelSizes(300, 16, 32, 16), [CLIP], r"has architecture \(0, 1, 2, 2, 1, 0\), but baselines\.architecture is"),
        (ModelSizes(300, 16, 64, 16), [], r"has image_size 64, but model\.image_size is 32; set it to 64"),
        (ModelSizes(300, 20, 32, 16), [], r"has context_length 20, but model\.context_length is 16"),
        (ModelSizes(300, 16, 32, 24), [], r"has embed_dim 24, but model\.embed_dim is 16"),
        (ModelSizes(301, 16, 32, 16), [], r"has 301 tokens.*tokenizer has 300.*data\.tokenizer\.name_or_path"),
    ],
)
def test_a_start_of_another_shape(
    data: Path, tmp_path: Path, sizes: ModelSizes, overrides: list[str], message: str
) -> None:
    clip_config(Architecture(0, 1, 2, 2, 1, 0), sizes, end_of_text=299).save_pretrained(tmp_path)
    config = load_config(data / "config.yaml", ["method=twp", f"baselines.start={tmp_path}", *overrides])
    inputs: Any = SimpleNamespace(
        sizes=config.model.sizes(300), tokenizer=SimpleNamespace(vocab_size=300, end_of_text=299)
    )
    with pytest.raises(InputError, match=message):
        fixed_model(config, inputs)


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_a_start_with_dropout(data: Path, tmp_path: Path, tower: str) -> None:
    """What it draws would be other numbers after an interruption, and in the second pass of an iteration."""
    sizes = ModelSizes(300, 16, 32, 16)
    clip = clip_config(Architecture(0, 1, 2, 2, 1, 0), sizes, end_of_text=299)
    getattr(clip, tower).attention_dropout = 0.1
    clip.save_pretrained(tmp_path)
    config = load_config(data / "config.yaml", ["method=twp", f"baselines.start={tmp_path}"])
    inputs: Any = SimpleNamespace(sizes=sizes, tokenizer=SimpleNamespace(vocab_size=300, end_of_text=299))
    with pytest.raises(InputError, match=rf"config\.json: {tower} has attention_dropout 0\.1.*set it to 0\.0"):
        fixed_model(config, inputs)


def test_a_start_that_is_not_there(data: Path, tmp_path: Path) -> None:
    config = load_config(data / "config.yaml", ["method=sap", f"baselines.start={tmp_path / 'none'}"])
    inputs: Any = SimpleNamespace(sizes=config.model.sizes(300), tokenizer=SimpleNamespace(end_of_text=299))
    with pytest.raises(InputError, match=r"none/config\.json: not the configuration of a CLIP model"):
        fixed_model(config, inputs)


def test_models_of_the_methods(data: Path) -> None:
    sizes = ModelSizes(300, 16, 32, 16)
    inputs: Any = SimpleNamespace(sizes=sizes, tokenizer=SimpleNamespace(vocab_size=300, end_of_text=299))

    def model(*overrides: str) -> ModelSpec:
        return fixed_model(load_config(data / "config.yaml", overrides), inputs)

    assert isinstance(model("method=tfs"), CLIPSpec)
    assert model("method=tfs").architecture == Architecture(0, 12, 12, 12, 8, 0)
    assert model("method=msclip") == GrowCLIPSpec(Architecture(2, 0, 12, 1, 12, 11), sizes, 299)
    grown = model("method=tfs", "baselines.model=growclip", architecture(SPACE.supernet))
    assert grown == GrowCLIPSpec(SPACE.supernet, sizes, 299)
