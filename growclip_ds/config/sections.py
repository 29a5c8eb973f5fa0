"""Sections of a configuration that are the same for every method: data, optimisation, evaluation, what is written."""

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


class Section(BaseModel):
    """A group of settings: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def as_tuple(value: Any) -> Any:
    """A list of a YAML file as settings hold it."""
    return tuple(value) if isinstance(value, list) else value


class SubsetSection(Section):
    """One data subset; growth step t trains on subsets 1 to t together."""

    name: str = Field(min_length=1, description="name of the subset in reports and messages")
    shards: str = Field(
        min_length=1,
        description="its webdataset shards: a folder, a glob or a brace pattern ({00000..00310}.tar); to stream them, "
        "a brace pattern of addresses (https://…, s3://…, pipe:command)",
    )
    samples: int | None = Field(default=None, ge=1, description="usable pairs, where they have been counted")
    shard_samples: Annotated[tuple[int, ...] | None, BeforeValidator(as_tuple)] = Field(
        default=None, description="samples of each shard that is streamed, where they have been counted"
    )


class TokenizerSection(Section):
    """The tokenizer, one for all growth steps."""

    name_or_path: str | None = Field(
        default=None,
        description="a Hugging Face tokenizer, by name or folder; null: a byte-level BPE is trained on the captions",
    )
    vocab_size: int | None = Field(
        default=None,
        ge=258,
        description="tokens of the tokenizer to train; of a loaded one, what it has to have (null: whatever it has)",
    )

    @model_validator(mode="after")
    def _size_of_a_trained_one(self) -> TokenizerSection:
        if self.name_or_path is None and self.vocab_size is None:
            raise ValueError("a tokenizer is to be trained (name_or_path is null), so state vocab_size, such as 8192")
        return self


class DataSection(Section):
    """The training data. Relative paths are relative to the current directory."""

    subsets: Annotated[tuple[SubsetSection, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1,
        description="the data subsets, in the order in which they arrive, or a file with them (`growclip data add`)",
        json_schema_extra={
            "expected": "a list with at least one subset, each with a name and shards, or the path of a file with one"
        },
    )
    tokenizer: TokenizerSection = Field(description="the tokenizer")
    workers: int = Field(
        default=4, ge=0, description="processes a rank that read and decode; 0: in the training process"
    )
    decoding: Literal["fast", "exact"] = Field(
        default="fast",
        description="fast: JPEG is decoded at the size needed; exact: pictures are to the bit as Pillow makes them, as "
        "evaluation always has them",
    )
    max_broken_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of the samples that may be broken, their places left empty; past it the run stops",
    )
    staged: str | None = Field(
        default=None,
        description="folder on every machine's own disk with copies of shards (`growclip data stage`); a shard "
        "without one is read from its own place",
    )

    @field_validator("subsets")
    @classmethod
    def _named_once(cls, subsets: tuple[SubsetSection, ...]) -> tuple[SubsetSection, ...]:
        if twice := _repeated(subset.name for subset in subsets):
            raise ValueError(f"two data subsets are called {twice!r}; give each a name of its own")
        return subsets


class TrainingSection(Section):
    """Optimisation, the same in every phase. Precision, ZeRO and offloading are the DeepSpeed file's."""

    global_batch_size: int = Field(
        default=1536,
        ge=2,
        description="pairs an iteration, over all ranks; each pair is contrasted with all the others",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="pairs a rank passes through the model at once; null: the DeepSpeed file's, or its whole share",
    )
    optimizer: Literal["lamb", "adamw"] = Field(default="lamb", description="the optimizer")
    learning_rate: float = Field(
        default=0.01, gt=0, description="peak learning rate; about a tenth of LAMB's suits AdamW"
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="decoupled weight decay of matrices; vectors have none")
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], BeforeValidator(as_tuple)
    ] = Field(
        default=(0.9, 0.999),
        description="decay of the first and of the second moment",
        json_schema_extra={"expected": "two numbers, each at least 0 and below 1"},
    )
    eps: float = Field(default=1e-6, gt=0, description="added to the root of the second moment")
    warmup_iterations: int = Field(
        default=4000,
        ge=0,
        description="linear warm-up of a phase, but at most a tenth of its iterations; then cosine to 0",
    )
    activation_checkpointing: Literal["off", "on", "offload"] = Field(
        default="off",
        description="recompute a block's activations in the backward pass; offload: keep its input in CPU memory",
    )


class SetSection(Section):
    """A set in CLIP-benchmark's layout. Its folder alone stands for one with the default split and name."""

    path: str = Field(min_length=1, description="its folder or address")
    split: str = Field(default=SPLIT, min_length=1, description="its folder with the shards")
    name: str = Field(
        # without a path, which is refused, it makes no difference what the name would be
        default_factory=lambda values: set_name(values.get("path", "."), values.get("split", SPLIT)),
        min_length=1,
        description="of the set in reports; if left out, the path's last part, and the split if it is not test",
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return spelled_out(value)

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        """As older versions, which knew only folders, have it in the configurations of their runs, where that will do:
        a run that began under one of them is then seen to be the same.
        """
        is_plain = (self.split, self.name) == (SPLIT, set_name(self.path))
        values: dict[str, Any] = handler(self)
        return self.path if is_plain else values

    def __str__(self) -> str:
        """Where it is, for messages."""
        return self.path if self.split == SPLIT else f"{self.path} ({self.split})"


def spelled_out(value: Any) -> Any:
    """What a text in the place of a set stands for."""
    return {"path": value} if isinstance(value, str) else value


def _named_once(sets: tuple[SetSection, ...]) -> tuple[SetSection, ...]:
    if twice := _repeated(one.name for one in sets):
        raise ValueError(f"two sets are called {twice!r}; give each a name of its own: {{name: …, path: …}}")
    return sets


EvaluationSets = Annotated[tuple[SetSection, ...], BeforeValidator(as_tuple), AfterValidator(_named_once)]


class SelectionSection(Section):
    """On what the candidates of a growth step are compared."""

    dataset: SetSection | None = Field(
        default=None,
        description="a labelled set in CLIP-benchmark's layout (top-1); null: held-out pairs (retrieval)",
        json_schema_extra={"expected": "a folder, or a section with path, split and name; or null"},
    )
    held_out: int = Field(
        default=1000, ge=2, description="pairs of every subset kept out of training for it, where dataset is null"
    )
    batch_size: int = Field(default=256, ge=1, description="pictures or captions a rank encodes at once")


class EvaluationSection(Section):
    """What is reported after each growth step."""

    datasets: EvaluationSets = Field(
        default=(),
        description="zero-shot classification and retrieval sets in CLIP-benchmark's layout",
        json_schema_extra={"expected": "a list of folders, or of sections with path, split and name"},
    )
    batch_size: int = Field(default=256, ge=1, description="pictures or captions a rank encodes at once")
    every_epochs: float | None = Field(
        default=None,
        gt=0,
        description="epochs from one evaluation in the course of a phase to the next; null: only what a growth step "
        "has trained is evaluated",
    )


class CheckpointSection(Section):
    """What is kept of an unfinished phase, for a run that is interrupted to go on from."""

    every_minutes: float | None = Field(
        default=15.0, gt=0, description="minutes from one checkpoint to the next; null: the clock does not count"
    )
    every_iterations: int | None = Field(
        default=None, ge=1, description="iterations from one checkpoint to the next; null: their number does not count"
    )
    keep_last: int = Field(
        default=2, ge=1, description="checkpoints to keep; with more than one, the last may turn out to be damaged"
    )
    background: bool = Field(
        default=True,
        description="write while training goes on, from a copy in main memory of 12 bytes a parameter over all ranks; "
        "where there is no room for it, and with false, training waits",
    )


class HealthSection(Section):
    """What is done about numbers that have gone wrong, and about ranks that hang."""

    max_bad_iterations: int = Field(
        default=10,
        ge=1,
        description="iterations in a row without an update, after which the run stops: loss or gradients were not "
        "finite, or a spike was skipped; while fp16 looks for its loss scale they do not count",
    )
    spike_factor: float | None = Field(
        default=None,
        gt=1,
        description="a loss of so many times the median of the last 100 is a spike, without an update; null: none is",
    )
    spike_action: Literal["skip", "stop"] = Field(default="skip", description="after a spike: go on, or stop the run")
    hang_minutes: float = Field(
        default=20.0,
        gt=0,
        description="minutes in which no rank gets on with an iteration, after which the run ends and names the rank",
    )


class MonitoringSection(Section):
    """What is written while training."""

    log_every: int = Field(default=10, ge=1, description="iterations from one point of the curves to the next")


def _repeated(names: Any) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)
