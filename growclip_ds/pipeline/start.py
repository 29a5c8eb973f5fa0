"""Runs that start from an exported model: its growth steps count as finished, and the run begins with the next."""

from __future__ import annotations

from dataclasses import asdict

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import owners, write_checkpoint
from growclip_ds.checkpoint.exported import ExportedModel
from growclip_ds.distributed import on_every_rank, on_main, rank, world_size
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.pipeline.prepare import RunInputs
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import PhaseRecord, described


def adopt(start: str, folder: RunFolder, inputs: RunInputs) -> tuple[int, Architecture]:
    """Writes an exported model into a run's folder as the result of the growth steps that it has finished. Collective.

    The run then continues as if it had trained the model itself, and no longer needs the exported folder.

    Args:
        start: path of the exported folder.
        folder: the run's folder.
        inputs: the inputs of the run.

    Returns:
        The last growth step that the model has finished, and its architecture.

    Raises:
        InputError: on every rank, if `start` is not an exported GrowCLIP, or does not fit the run.
    """
    if not folder.is_finished(1, Phase.TRAIN):
        model = on_every_rank(lambda: ExportedModel(start))
        _check_fits(model, inputs)
        records = _records(model, start)
        last = max(records)
        if not folder.is_trained(last, Phase.TRAIN):
            _write_weights(model, folder, records[last])
        for step in sorted(records, reverse=True):  # step 1 last: once it is finished, all are
            folder.finish(records[step])
    last = on_main(lambda: sum(record.start is not None for record in folder.records()))
    return last, folder.record(last, Phase.TRAIN).architecture


def _check_fits(model: ExportedModel, inputs: RunInputs) -> None:
    where = f"model.start, {model.folder},"
    for name in ("context_length", "image_size", "embed_dim"):
        theirs, ours = getattr(model.sizes, name), getattr(inputs.sizes, name)
        if theirs != ours:
            raise InputError(f"{where} has {name} {theirs}, but model.{name} is {ours}; set it to {theirs}")
    tokenizer = inputs.tokenizer
    if (tokenizer.vocab_size, tokenizer.end_of_text) != (model.sizes.vocab_size, model.end_of_text):
        raise InputError(
            f"{where} has {model.sizes.vocab_size} tokens with end-of-text token {model.end_of_text}, but the run's "
            f"tokenizer has {tokenizer.vocab_size} with {tokenizer.end_of_text}: use the model's own tokenizer "
            f"(data.tokenizer.name_or_path={model.folder})"
        )


def _records(model: ExportedModel, start: str) -> dict[int, PhaseRecord]:
    """The record of each growth step that the model has finished."""
    parameters = model.sizes.parameters_of(model.architecture)
    first = {"step": 1, "architecture": asdict(model.architecture), "parameters": parameters, "samples": 0}
    growth = {step["step"]: step for step in model.growth or [first]}
    if sorted(growth) != list(range(1, len(growth) + 1)):
        raise InputError(f"model.start, {start}, has growth steps {sorted(growth)}; those from 1 on are needed")
    return {
        number: PhaseRecord(
            step=number,
            phase=Phase.TRAIN,
            samples=step["samples"],
            parameters=step["parameters"],
            kind=model.spec.kind,
            architecture=Architecture(**step["architecture"]),
            start=start,
        )
        for number, step in growth.items()
    }


def _write_weights(model: ExportedModel, folder: RunFolder, record: PhaseRecord) -> None:
    owner = owners(model.spec.shapes, world_size())
    write_checkpoint(
        folder.weights(record.step, record.phase),
        ((name, model.read(name) if owner[name] == rank() else None) for name in model.names),
        model.spec.shapes,
        owner.__getitem__,
        model.spec.describe() | described(record),
    )
