"""The configuration's sections that apply to every method: data, optimisation, evaluation, checkpoints, monitoring."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from growclip_ds.config.set_names import SPLIT, set_name

ActivationCheckpointing = Literal["off", "on", "offload"]  # as in `growclip_ds.model.checkpointing`, without torch


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are not converted, and instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def as_tuple(value: Any) -> Any:
    """Converts a YAML list to a tuple, which is immutable; other values are returned unchanged."""
    return tuple(value) if isinstance(value, list) else value


class SubsetSection(Section):
    """One data subset; growth step t trains on subsets 1 to t together."""

    name: str = Field(min_length=1, description="the subset's name in reports and messages")
    shards: str = Field(
        min_length=1,
        description="its webdataset shards: a folder, a glob or a brace pattern ({00000..00310}.tar); to stream them, "
        "a brace pattern of URLs (https://…, s3://…, pipe:command)",
    )
    samples: int | None = Field(default=None, ge=1, description="number of usable pairs, if counted")
    shard_samples: Annotated[tuple[int, ...] | None, BeforeValidator(as_tuple)] = Field(
        default=None, description="number of samples of each streamed shard, if counted"
    )


class TokenizerSection(Section):
    """The tokenizer, one for all growth steps."""

    name_or_path: str | None = Field(
        default=None,
        description="a Hugging Face tokenizer, by name or folder; null: train a byte-level BPE on the captions",
    )
    vocab_size: int | None = Field(
        default=None,
        ge=258,
        description="vocabulary size of the tokenizer to train; for a loaded one, the size it must have (null: any)",
    )

    @model_validator(mode="after")
    def _size_of_a_trained_one(self) -> TokenizerSection:
        if self.name_or_path is None and self.vocab_size is None:
            raise ValueError("a tokenizer is to be trained (name_or_path is null), so state vocab_size, such as 8192")
        return self


class DataSection(Section):
    """The training data. Relative paths are relative to the working directory."""

    subsets: Annotated[tuple[SubsetSection, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1,
        description="the data subsets in order of arrival, or the path of a file that lists them (`growclip data add`)",
        json_schema_extra={
            "expected": "a list with at least one subset, each with a name and shards, or the path of a file with one"
        },
    )
    tokenizer: TokenizerSection = Field(description="the tokenizer")
    workers: int = Field(
        default=4, ge=0, description="data loading processes per rank; 0: load in the training process"
    )
    decoding: Literal["fast", "exact"] = Field(
        default="fast",
        description="fast: decode JPEG at a reduced size where that suffices; exact: bit-identical to Pillow, as "
        "evaluation always is",
    )
    max_broken_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="tolerated share of broken samples, whose places stay empty; above it the run stops",
    )
    staged: str | None = Field(
        default=None,
        description="folder on each machine's local disk with copies of shards (`growclip data stage`); shards "
        "without a copy are read from their original place",
    )

    @field_validator("subsets")
    @classmethod
    def _named_once(cls, subsets: tuple[SubsetSection, ...]) -> tuple[SubsetSection, ...]:
        if twice := _repeated(subset.name for subset in subsets):
            raise ValueError(f"two data subsets are called {twice!r}; give each a name of its own")
        return subsets


class TrainingSection(Section):
    """Optimisation, the same in every phase. Precision, ZeRO and offloading are set in the DeepSpeed file."""

    global_batch_size: int = Field(
        default=1536,
        ge=2,
        description="pairs per iteration, over all ranks; every pair is contrasted with all the others",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="pairs per forward pass of a rank; null: the DeepSpeed file's, or the rank's whole share",
    )
    optimizer: Literal["lamb", "adamw"] = Field(default="lamb", description="the optimizer")
    learning_rate: float = Field(
        default=0.01, gt=0, description="peak learning rate; for AdamW, use about a tenth of LAMB's"
    )
    weight_decay: float = Field(
        default=1e-4, ge=0, description="decoupled weight decay of matrices; vectors are not decayed"
    )
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], BeforeValidator(as_tuple)
    ] = Field(
        default=(0.9, 0.999),
        description="decay rates of the first and second moments",
        json_schema_extra={"expected": "two numbers, each at least 0 and below 1"},
    )
    eps: float = Field(default=1e-6, gt=0, description="added to the square root of the second moment")
    warmup_iterations: int = Field(
        default=4000,
        ge=0,
        description="linear warm-up of each phase, at most a tenth of its iterations; then cosine decay to 0",
    )
    activation_checkpointing: ActivationCheckpointing = Field(
        default="off",
        description="recompute each block's activations in the backward pass; offload: keep its input in CPU memory",
    )


class SetSection(Section):
    """An evaluation set in CLIP-benchmark's layout; a plain path stands for one with the default split and name."""

    path: str = Field(min_length=1, description="its folder or URL")
    split: str = Field(default=SPLIT, min_length=1, description="the subfolder with its shards")
    name: str = Field(
        # without a path, which is an error anyway, the name does not matter
        default_factory=lambda values: set_name(values.get("path", "."), values.get("split", SPLIT)),
        min_length=1,
        description="its name in reports; default: the last part of the path, and the split unless that is test",
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return spelled_out(value)

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        """A plain path if split and name are the defaults, otherwise a section.

        Older versions, which only had folders, stored plain paths in their runs' configurations: so a run that began
        under one of them is still recognised as the same.
        """
        is_plain = (self.split, self.name) == (SPLIT, set_name(self.path))
        values: dict[str, Any] = handler(self)
        return self.path if is_plain else values

    def __str__(self) -> str:
        """Its path and any split other than the default, for messages."""
        return self.path if self.split == SPLIT else f"{self.path} ({self.split})"


def spelled_out(value: Any) -> Any:
    """Expands a path in place of a set's section; other values are returned unchanged."""
    return {"path": value} if isinstance(value, str) else value


def _named_once(sets: tuple[SetSection, ...]) -> tuple[SetSection, ...]:
    if twice := _repeated(one.name for one in sets):
        raise ValueError(f"two sets are called {twice!r}; give each a name of its own: {{name: …, path: …}}")
    return sets


EvaluationSets = Annotated[tuple[SetSection, ...], BeforeValidator(as_tuple), AfterValidator(_named_once)]


class SelectionSection(Section):
    """The data on which the candidates of a growth step are compared."""

    dataset: SetSection | None = Field(
        default=None,
        description="a set in CLIP-benchmark's layout, labelled (zero-shot top-1) or of captions (mean R@1); null: "
        "held-out pairs (R@1)",
        json_schema_extra={"expected": "a folder, or a section with path, split and name; or null"},
    )
    held_out: int = Field(
        default=1000, ge=2, description="pairs of every subset to hold out for this, if dataset is null"
    )
    batch_size: int = Field(default=256, ge=1, description="images or captions per forward pass of a rank")


class EvaluationSection(Section):
    """Zero-shot evaluation after each growth step."""

    datasets: EvaluationSets = Field(
        default=(),
        description="zero-shot classification and retrieval sets in CLIP-benchmark's layout",
        json_schema_extra={"expected": "a list of folders, or of sections with path, split and name"},
    )
    batch_size: int = Field(default=256, ge=1, description="images or captions per forward pass of a rank")
    every_epochs: float | None = Field(
        default=None,
        gt=0,
        description="epochs between evaluations during a phase; null: only the trained model of a growth step is "
        "evaluated",
    )


class CheckpointSection(Section):
    """Checkpoints within a phase, from which an interrupted run resumes."""

    every_minutes: float | None = Field(
        default=15.0, gt=0, description="minutes between checkpoints; null: not by time"
    )
    every_iterations: int | None = Field(
        default=None, ge=1, description="iterations between checkpoints; null: not by iterations"
    )
    keep_last: int = Field(
        default=2, ge=1, description="checkpoints to keep; with more than one, the run survives damage to the newest"
    )
    background: bool = Field(
        default=True,
        description="write while training continues, from a copy in CPU memory, 12 bytes per parameter over all "
        "ranks; without room for it, and with false, training waits",
    )


class HealthSection(Section):
    """Handling of non-finite numbers, loss spikes and hanging ranks."""

    max_bad_iterations: int = Field(
        default=10,
        ge=1,
        description="consecutive iterations without an update (non-finite loss or gradients, or a skipped spike) after "
        "which the run stops; overflows while fp16 searches for its loss scale do not count",
    )
    spike_factor: float | None = Field(
        default=None,
        gt=1,
        description="skip the update if the loss is this many times the median of the last 100; null: never",
    )
    spike_action: Literal["skip", "stop"] = Field(
        default="skip", description="after a spike: continue, or stop the run"
    )
    hang_minutes: float = Field(
        default=20.0,
        gt=0,
        description="minutes without progress on any rank, after which the run ends and names the hanging rank",
    )


class MonitoringSection(Section):
    """Logging during training."""

    log_every: int = Field(default=10, ge=1, description="iterations between points of the curves")


def _repeated(names: Any) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)
