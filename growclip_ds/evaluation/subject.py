"""The model to evaluate, a checkpoint or the latest model of a run, with its tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.checkpoint.checkpoint import Checkpoint, load_model
from growclip_ds.checkpoint.exported import ExportedModel, is_exported
from growclip_ds.checkpoint.writing import INDEX
from growclip_ds.data.tokens import Tokenizer, load_tokenizer
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder

_SHARD = "*.safetensors"  # weights of a checkpoint in Hugging Face format


@dataclass(frozen=True)
class Subject:
    """A checkpoint to evaluate.

    Attributes:
        folder: folder of the weights.
        run: the run that the checkpoint belongs to; None if it belongs to none.
        growth_step: number of the growth step that wrote the checkpoint; None if it does not say.
        architecture: the model's architecture; None for a CLIP in Hugging Face format.
        digest: digest of the weights.
    """

    folder: Path
    run: RunFolder | None
    growth_step: int | None
    architecture: Architecture | None
    digest: str

    @property
    def _is_checkpoint(self) -> bool:
        """Whether it is in the format of training checkpoints."""
        return (self.folder / INDEX).exists()

    def load(self) -> nn.Module:
        """The model, in fp32 on the CPU.

        Raises:
            InputError: its weights are damaged, or it is a CLIP whose images are normalised differently.
        """
        if self._is_checkpoint:
            return load_model(self.folder)
        if is_exported(self.folder):
            return ExportedModel(self.folder).load()
        # `transformers`' models are slow to import.
        from growclip_ds.baselines.clip_checkpoint import load_clip, require_pixels

        require_pixels(self.folder)
        return load_clip(self.folder)

    def tokenizer(self, named: str | None, sizes: ModelSizes, end_of_text: int) -> Tokenizer:
        """Loads the tokenizer for the model's captions.

        Args:
            named: folder or name of the tokenizer; if None, it is searched for beside the weights and in the run's
                folder.
            sizes: sizes of the model.
            end_of_text: id of the model's end-of-text token.

        Raises:
            InputError: there is no tokenizer, or it belongs to another model.
        """
        name = named or self._own_tokenizer()
        tokenizer = load_tokenizer(name, sizes.context_length)
        if tokenizer.vocab_size > sizes.vocab_size or tokenizer.end_of_text != end_of_text:
            raise InputError(
                f"tokenizer {name} has {tokenizer.vocab_size} tokens and end-of-text token {tokenizer.end_of_text}, "
                f"but the model in {self.folder} has {sizes.vocab_size} and {end_of_text}; "
                "name the tokenizer that it was trained with (--tokenizer)"
            )
        return tokenizer

    def _own_tokenizer(self) -> str:
        folders = [] if self._is_checkpoint else [self.folder]
        folders += [self.folder / "tokenizer", self.folder.parent / "tokenizer"]
        folders += [self.run.tokenizer] if self.run else []
        for folder in folders:
            if any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
                return str(folder)
        raise InputError(
            f"{self.folder}: no tokenizer in {', '.join(dict.fromkeys(map(str, folders)))}; "
            "name the one that the model was trained with (--tokenizer)"
        )


def find_subject(path: Path | str, step: int | None = None) -> Subject:
    """Finds the checkpoint in a folder, or the one of a run's growth step.

    Args:
        path: folder of a checkpoint, of a phase of a run, of a run, or of a model in Hugging Face format, which may be
            a CLIP or an exported model.
        step: growth step of the run; the latest trained one if None.

    Raises:
        InputError: there is no checkpoint, or it is damaged.
    """
    path = Path(path)
    if (path / INDEX).exists() or (path / "weights" / INDEX).exists():
        if step is not None:
            raise InputError(f"{path} is a checkpoint and has no growth steps; leave --step out")
        return _of_checkpoint(path if (path / INDEX).exists() else path / "weights")
    run = RunFolder(path)
    if run.config_file.exists():
        return _of_checkpoint(_trained_step(run, step))
    if step is not None and (path / "config.json").exists():
        raise InputError(f"{path} is a single model in Hugging Face format; leave --step out")
    if is_exported(path):
        model = ExportedModel(path)
        growth_step, digest = model.description.get("growth_step"), model.digest(sorted(model.names))
        return Subject(path.absolute(), None, growth_step, model.architecture, digest)
    if is_hugging_face(path):
        return Subject(path.absolute(), None, None, None, _digest_of_files(path))
    raise InputError(f"{path} {nothing_there(path)}")


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model of any type, as saved by `transformers`."""
    return (folder / "config.json").exists() and any(folder.glob(_SHARD))


def nothing_there(path: Path) -> str:
    """What is wrong with a path that holds no model, and what to give instead, for messages."""
    if trained := [folder for folder in (path / phase for phase in Phase) if (folder / "weights" / INDEX).exists()]:
        return f"is a growth step of a run; give the run, or one of its phases, such as {trained[-1]}"
    if (path / "config.json").exists():
        return "has a config.json, but no *.safetensors; copy the folder again, or save the model as safetensors"
    problem = "holds no checkpoint and no run" if path.is_dir() else "is not a folder"
    return f"{problem}; give a folder with {INDEX}, the folder of a run, or a model in Hugging Face format"


def _of_checkpoint(folder: Path) -> Subject:
    folder = folder.absolute()
    checkpoint = Checkpoint(folder)
    above = folder.parents[min(2, len(folder.parents) - 1)]  # RUN/step_1/train/weights
    run = RunFolder(above) if (above / "config.yaml").exists() else None
    step = checkpoint.description.get("growth_step")
    return Subject(folder, run, step, checkpoint.spec.architecture, digest_of_weights(checkpoint))


def digest_of_weights(checkpoint: Checkpoint) -> str:
    """Digest of the model's weights in a checkpoint, which identifies their results.

    Raises:
        InputError: the checkpoint holds no model.
    """
    return checkpoint.digest(sorted(checkpoint.spec.shapes))


def _trained_step(run: RunFolder, step: int | None) -> Path:
    """The folder of the weights of a growth step's model; see `find_subject` for `step`."""
    names = (folder.name.removeprefix("step_") for folder in run.path.glob("step_*"))
    numbers = sorted(int(name) for name in names if name.isdecimal())
    trained = [number for number in numbers if (run.weights(number, Phase.TRAIN) / INDEX).exists()]
    finished = [number for number in numbers if run.record_file(number, Phase.TRAIN).exists()]
    wanted = step or max([*trained, *finished], default=0)
    if wanted in finished and wanted not in trained:
        raise InputError(
            f"{run.path}: growth step {wanted} is finished, but its weights are missing "
            f"({run.weights(wanted, Phase.TRAIN) / INDEX}); copy them from where the run was trained"
            + (f", or use another step (--step {', '.join(map(str, trained))})" if trained else "")
        )
    if not trained:
        raise InputError(f"{run.path}: no growth step is trained yet; let the run finish one")
    if step is not None and step not in trained:
        raise InputError(f"{run.path}: growth step {step} is not trained; --step can be {', '.join(map(str, trained))}")
    return run.weights(step or trained[-1], Phase.TRAIN)


def _digest_of_files(folder: Path) -> str:
    """Digest of the weights and the configuration of a checkpoint in Hugging Face format."""
    digest = hashlib.blake2b(digest_size=16)
    for file in [folder / "config.json", *sorted(folder.glob(_SHARD))]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def digest_of_tokenizer(tokenizer: Tokenizer) -> str:
    """Digest of everything that determines the ids of a text."""
    state = json.dumps(tokenizer.__getstate__(), sort_keys=True)
    return hashlib.blake2b(state.encode(), digest_size=16).hexdigest()


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device to evaluate on.

    Args:
        name: `cpu`, `cuda`, or `auto`, which takes a GPU if there is one and DeepSpeed was not told to use the CPU.
        local_rank: rank of this process on its machine, which is the index of its GPU.

    Raises:
        InputError: there is no such GPU.
    """
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and on_cpu):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"there is no GPU for rank {local_rank} of this machine, which has {torch.cuda.device_count()}: "
            "start fewer ranks, or use --device cpu"
        )
    return torch.device("cuda", local_rank)
