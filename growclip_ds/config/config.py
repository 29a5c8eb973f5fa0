"""The configuration of a run: every setting with its type, default (the paper's, Section 4.1) and meaning.

A YAML file is read, overrides from the command line are applied, and the result is validated once. It is immutable from
then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema

from growclip_ds.architecture import STEM_STRIDE, Architecture, ModelSizes
from growclip_ds.config.errors import COMMAND_LINE, explain, override
from growclip_ds.config.sections import (
    CheckpointSection,
    DataSection,
    EvaluationSection,
    HealthSection,
    MonitoringSection,
    Section,
    SelectionSection,
    TrainingSection,
    as_tuple,
    spelled_out,
)
from growclip_ds.errors import InputError
from growclip_ds.yaml_files import parse_yaml, read_yaml, to_yaml

Dimension = Literal["conv_layers", "image_blocks", "image_heads", "text_blocks", "text_heads", "shared_blocks"]
Method = Literal["growclip", "tfs", "twp", "sap", "msclip", "nas"]

VIT_B_16 = Architecture(0, 12, 12, 12, 8, 0)  # the paper's fixed CLIP
MS_CLIP = Architecture(2, 0, 12, 1, 12, 11)  # of about the same size: convolutions for images, one block for text alone


class ArchitectureSection(Section):
    """The six integers of an architecture; the defaults are those of the paper's S1."""

    conv_layers: int = Field(
        default=0, ge=0, description="l^I: convolutional layers of the image stem beyond its first"
    )
    image_blocks: int = Field(default=6, ge=0, description="b^I: transformer blocks of the image encoder")
    image_heads: int = Field(
        default=6, ge=1, description="h^I: attention heads of the image encoder, each 64 channels wide"
    )
    text_blocks: int = Field(default=6, ge=0, description="b^T: transformer blocks of the text encoder")
    text_heads: int = Field(
        default=4, ge=1, description="h^T: attention heads of the text encoder, each 64 channels wide"
    )
    shared_blocks: int = Field(default=0, ge=0, description="b^S: transformer blocks that both modalities pass through")


class _FromSection:
    """Reads an Architecture as a section of six integers, and writes it as one."""

    section = ArchitectureSection

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda section: Architecture(**dict(section)),
            handler.generate_schema(cls.section),
            serialization=core_schema.plain_serializer_function_ser_schema(asdict),
        )


class ModelSection(Section):
    """The model of growth step 1, and the sizes that do not grow."""

    base: Annotated[Architecture, _FromSection] = Field(
        default_factory=lambda: Architecture(**dict(ArchitectureSection())),
        description="architecture of growth step 1",
    )
    image_size: int = Field(
        default=224,
        ge=STEM_STRIDE,
        multiple_of=STEM_STRIDE,
        description="height and width of the images in pixels, a multiple of 16",
    )
    context_length: int = Field(
        default=77, ge=3, description="maximum tokens per caption, including start and end of text"
    )
    embed_dim: int = Field(default=512, ge=1, description="width of the common embedding space")
    start: str | None = Field(
        default=None,
        min_length=1,
        description="folder of an exported GrowCLIP (`growclip export`); the run continues with its next growth step; "
        "null: train from scratch",
    )

    def sizes(self, vocab_size: int) -> ModelSizes:
        return ModelSizes(vocab_size, self.context_length, self.image_size, self.embed_dim)


class GrowthSection(Section):
    """The growth space (Table 2), how weights are inherited (Eq. 5, 8), how candidates are ranked (Eq. 7)."""

    steps: int | None = Field(default=None, ge=1, description="number of growth steps; null: one per data subset")
    conv_step: int = Field(
        default=2, ge=0, description="convolutional layers added where l^I grows; 0: it does not grow"
    )
    block_step: int = Field(default=4, ge=0, description="blocks added where b^I, b^T or b^S grow; 0: they do not grow")
    head_step: int = Field(default=4, ge=0, description="heads added where h^I or h^T grow; 0: they do not grow")
    frozen: Annotated[tuple[Dimension, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="dimensions that do not grow; each halves the number of candidates",
        json_schema_extra={
            "expected": "a list of conv_layers, image_blocks, image_heads, text_blocks, text_heads, shared_blocks"
        },
    )
    max_parameters: int | None = Field(
        default=None, ge=1, description="exclude candidates with more parameters than this; null: no limit"
    )
    beta: float = Field(default=0.3, ge=0, description="β of Eq. 5: factor of the old weights")
    gamma: float = Field(default=0.001, ge=0, description="γ of Eq. 5: factor of the random weights")
    alpha: float = Field(default=0.5, ge=0, description="α of Eq. 7: weight of the preference for fewer parameters")
    fresh_weights: Literal["full", "gamma"] = Field(
        default="full", description="scale of weights that the old model does not have: as initialised, or times γ"
    )
    blend_vectors: bool = Field(
        default=False, description="apply Eq. 5 to norms, biases and the temperature too, instead of copying them"
    )


class BaselinesSection(Section):
    """The fixed model of the methods tfs, twp, sap and msclip, and how long baselines train."""

    model: Literal["clip", "growclip"] = Field(
        default="clip",
        description="for tfs, twp and sap: transformers' CLIP, or a GrowCLIP of fixed architecture, as for msclip",
    )
    architecture: Annotated[Architecture, _FromSection] | None = Field(
        default=None,
        description="architecture of the fixed model; null: ViT-B/16's (0, 12, 12, 12, 8, 0), for msclip "
        "(2, 0, 12, 1, 12, 11)",
    )
    start: str | None = Field(
        default=None,
        min_length=1,
        description="for tfs, twp and sap: folder of a pretrained CLIP in Hugging Face format to start growth step 1 "
        "from; null: train from scratch",
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        description="epochs per growth step (for nas, per phase); null: as many as GrowCLIP's phases have together",
    )


class AblationSection(Section):
    """Parts of a growth step to remove (method growclip, Table 5); the epochs of a removed phase go to the last one."""

    pim_supernet: bool = Field(
        default=True, description="PIM before phase 1; false: the supernet inherits with β = 1, γ = 0"
    )
    finetuning: bool = Field(default=True, description="phase 1, fine-tuning of the supernet")
    selection: bool = Field(
        default=True, description="phase 2, selection; false: a candidate is picked at random, from the seed"
    )
    pim_selected: bool = Field(
        default=True, description="PIM before phase 3; false: the selected model inherits with β = 1, γ = 0"
    )
    grow_only: Dimension | None = Field(
        default=None, description="the only dimension that grows, in every growth step; nothing is selected"
    )

    @property
    def selects(self) -> bool:
        """Whether a growth step compares candidates."""
        return self.selection and self.grow_only is None


class EpochsSection(Section):
    """Epochs of each phase of a growth step. Step 1 has one phase, later steps have three."""

    first: int = Field(default=30, ge=1, description="growth step 1: training of the base model")
    supernet: int = Field(default=2, ge=0, description="phase 1: fine-tuning of the supernet; 0: inherit only")
    selection: int = Field(
        default=2, ge=0, description="phase 2: training of sampled subnets, before the candidates are compared"
    )
    selected: int = Field(default=26, ge=1, description="phase 3: training of the selected architecture")


class Config(Section):
    """A run's configuration."""

    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of weights, data order and sampled subnets")
    method: Method = Field(default="growclip", description="growclip, or a baseline: tfs, twp, sap, msclip, nas")
    model: ModelSection = Field(default=ModelSection(), description="the model to start from")
    growth: GrowthSection = Field(default=GrowthSection(), description="growth, inheritance and selection")
    epochs: EpochsSection = Field(default=EpochsSection(), description="length of the phases")
    baselines: BaselinesSection = Field(default=BaselinesSection(), description="the other methods' models")
    ablation: AblationSection = Field(default=AblationSection(), description="parts of a growth step to remove")
    data: DataSection = Field(description="training data")
    training: TrainingSection = Field(default=TrainingSection(), description="optimisation")
    selection: SelectionSection = Field(default=SelectionSection(), description="comparison of candidates")
    evaluation: EvaluationSection = Field(default=EvaluationSection(), description="zero-shot evaluation")
    checkpoint: CheckpointSection = Field(default=CheckpointSection(), description="checkpoints within a phase")
    health: HealthSection = Field(default=HealthSection(), description="non-finite numbers, loss spikes, hanging ranks")
    monitoring: MonitoringSection = Field(default=MonitoringSection(), description="TensorBoard and progress")

    @model_validator(mode="after")
    def _a_subset_for_every_step(self) -> Config:
        if self.growth.steps is not None and self.growth.steps > len(self.data.subsets):
            raise ValueError(
                f"growth.steps is {self.growth.steps}, but data.subsets lists {len(self.data.subsets)}: "
                "growth step t trains on subsets 1 to t, so list more subsets or reduce the steps"
            )
        return self

    @model_validator(mode="after")
    def _what_the_method_has(self) -> Config:
        if self.method != "growclip" and self.ablation != AblationSection():
            raise ValueError(f"ablation changes growth steps of growclip, but method is {self.method}; leave it out")
        if self.ablation.grow_only in self.growth.frozen:
            raise ValueError(
                f"ablation.grow_only is {self.ablation.grow_only}, which growth.frozen keeps from growing: "
                "leave one of them out"
            )
        if self.method != "growclip" and self.model.start is not None:
            raise ValueError(f"model.start is a GrowCLIP to grow, but method is {self.method}; leave it out")
        if not self.has_fixed_model:
            return self
        architecture, is_clip = self.fixed_architecture, self.fixed_model_is_clip
        if is_clip and (architecture.conv_layers or architecture.shared_blocks):
            raise ValueError(
                f"baselines.architecture {architecture} is not a CLIP's, which has no conv_layers or shared_blocks; "
                "set them to 0, or baselines.model to growclip"
            )
        if self.method == "msclip" and not architecture.shared_blocks:
            raise ValueError(f"baselines.architecture {architecture} shares nothing; msclip needs shared_blocks")
        if self.baselines.start is not None and not is_clip:
            raise ValueError(
                "baselines.start is a CLIP's weights, which a GrowCLIP cannot load; leave it out, or use method tfs, "
                "twp or sap and baselines.model clip"
            )
        return self

    @property
    def has_fixed_model(self) -> bool:
        """Whether the method trains a model of the same architecture in every growth step."""
        return self.method in ("tfs", "twp", "sap", "msclip")

    @property
    def fixed_model_is_clip(self) -> bool:
        """Whether the fixed model is `transformers`' CLIP rather than a GrowCLIP."""
        return self.method != "msclip" and self.baselines.model == "clip"

    @property
    def fixed_architecture(self) -> Architecture:
        """The fixed model's architecture, unless it starts from a pretrained CLIP."""
        return self.baselines.architecture or (MS_CLIP if self.method == "msclip" else VIT_B_16)

    @property
    def num_growth_steps(self) -> int:
        return self.growth.steps or len(self.data.subsets)

    @property
    def held_out_pairs(self) -> int:
        """Number of pairs held out of every subset."""
        return 0 if self.selection.dataset else self.selection.held_out

    def warnings(self) -> list[str]:
        """Warnings about settings that are valid but questionable, one line each."""
        found = []
        dataset = self.selection.dataset
        reported = {(Path(other.path).resolve(), other.split) for other in self.evaluation.datasets}
        if dataset and (Path(dataset.path).resolve(), dataset.split) in reported:
            found.append(
                f"selection.dataset, {dataset}, is one of evaluation.datasets: architectures are chosen by the "
                "accuracy that is then reported on it"
            )
        if self.health.spike_action == "stop" and self.health.spike_factor is None:
            found.append("health.spike_action has no effect without health.spike_factor, such as 3: no loss is a spike")
        if self.evaluation.every_epochs is not None and not self.evaluation.datasets:
            found.append("evaluation.every_epochs has no effect without evaluation.datasets: nothing is evaluated")
        return found

    def to_yaml(self) -> str:
        """The full configuration as YAML for `load_config`, including defaults."""
        return to_yaml(self.model_dump(mode="json"))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a run's configuration.

    Args:
        path: the YAML file.
        overrides: `section.key=value`, with the value as in YAML; list items are addressed by their index from 0
            (`data.subsets.0.shards=my/shards`).

    Raises:
        InputError: the file cannot be read, or keys or values are invalid; one line per problem, with its source, the
            value and what is expected.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold sections of settings (`seed: 0`, `data: …`), but holds {values!r}")
    origins = _spell_out(values)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise InputError(f"the command line's {text!r} is not an override; write section.key=value")
        override(values, key, parse_yaml(value, f"the command line's {text!r}"))
        origins += [(key, COMMAND_LINE), *_spell_out(values)]
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, Config, values, str(path), origins)) from None


def _spell_out(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Expands, in place, strings that stand for sections, so that overrides can address what is in them.

    A path in `data.subsets` becomes the list in that file; a path in place of an evaluation set becomes a section.

    Returns:
        (key, file) for each key whose value was read from another file.
    """
    origins = []
    data, selection, evaluation = (values.get(name) for name in ("data", "selection", "evaluation"))
    if isinstance(data, dict) and isinstance(data.get("subsets"), str):
        file = data["subsets"]
        try:
            data["subsets"] = read_yaml(file)
        except InputError as error:
            raise InputError(f"data.subsets: {error}") from None
        origins.append(("data.subsets", file))
    if isinstance(selection, dict) and "dataset" in selection:
        selection["dataset"] = spelled_out(selection["dataset"])
    if isinstance(evaluation, dict) and isinstance(evaluation.get("datasets"), list):
        evaluation["datasets"] = [spelled_out(one) for one in evaluation["datasets"]]
    return origins
