"""Draws a run's training loss over all phases and its zero-shot accuracy after each growth step.

python docs/plot_training.py runs/demo docs/demo.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from growclip_ds.growth.phases import Phase
from growclip_ds.monitor import read_summaries
from growclip_ds.run.folder import RunFolder

COLOURS = {Phase.FINETUNE: "tab:orange", Phase.SELECTION: "tab:green", Phase.TRAIN: "tab:blue"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    options = parser.parse_args()
    folder = RunFolder(options.run)
    events = EventAccumulator(str(folder.tensorboard / "training"), size_guidance={"scalars": 0}).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]

    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(3, 1), layout="constrained")
    for record in folder.records():
        first, last, phase = record.first_iteration, record.first_iteration + record.iterations, record.phase
        points = [(iteration, value) for iteration, value in losses if first < iteration <= last]
        label = phase if record.step == 2 else None
        loss.plot(*zip(*points, strict=True), color=COLOURS[phase], linewidth=1, label=label)
        if phase is Phase.TRAIN:
            loss.axvline(last, color="0.8", linewidth=0.8, zorder=0)
    loss.set(xlabel="iteration, all phases", ylabel="contrastive loss", title="Training loss")
    loss.legend(frameon=False)
    summaries = read_summaries(folder)
    for dataset in summaries[-1].after:
        steps = [summary.step for summary in summaries]
        accuracy.plot(steps, [summary.after[dataset] for summary in summaries], "o-", label=dataset)
    accuracy.set(xlabel="growth step", ylabel="%", xticks=steps, ylim=0, title="Zero-shot accuracy")
    accuracy.legend(frameon=False, fontsize="small")
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
