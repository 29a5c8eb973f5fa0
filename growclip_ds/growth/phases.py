"""The phases of a growth step, and the epochs of each."""

from __future__ import annotations

from enum import StrEnum

from growclip_ds.config.config import Config


class Phase(StrEnum):
    """A separately trained part of a growth step; members are in the order in which a step runs them."""

    FINETUNE = "finetune"  # phase 1 of Section 3.4: trains the supernet as a whole
    SELECTION = "selection"  # phase 2: trains the supernet by sampled subnets, then selects a candidate
    SEARCH = "search"  # the same from scratch, for NAS
    TRAIN = "train"  # phase 3: trains the model of the growth step


def phase_epochs(config: Config, step: int) -> dict[Phase, int]:
    """The phases of a growth step in order, each with its number of epochs over the step's data."""
    epochs = config.epochs
    grown = {Phase.FINETUNE: epochs.supernet, Phase.SELECTION: epochs.selection, Phase.TRAIN: epochs.selected}
    total = epochs.first if step == 1 else sum(grown.values())
    fixed = config.baselines.epochs or total
    match config.method, step:
        case "growclip", 1:
            return {Phase.TRAIN: epochs.first}
        case "growclip", _:
            ablation = config.ablation
            left_out = [] if ablation.finetuning else [Phase.FINETUNE]
            left_out += [] if ablation.selects else [Phase.SELECTION]
            grown[Phase.TRAIN] += sum(grown.pop(phase) for phase in left_out)
            return grown
        case "nas", step if step > 1:
            return {Phase.SEARCH: fixed, Phase.TRAIN: fixed}
        case _:
            return {Phase.TRAIN: fixed}
