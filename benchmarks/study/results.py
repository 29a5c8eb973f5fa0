"""Results of the study's finished runs: their folders without weights, stored in the repository."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from growclip_ds.architecture import Architecture
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import PhaseRecord


@dataclass(frozen=True)
class Results:
    """The folder of results.

    Attributes:
        path: the folder, with a subfolder per finished run that `growclip report` can read.
    """

    path: Path

    def has(self, name: str) -> bool:
        return (self.path / name / "config.yaml").exists()

    def keep(self, name: str, run: RunFolder) -> None:
        """Stores a finished run's configuration and records, atomically."""
        partial = self.path / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for file in [run.config_file, run.deepspeed_file, run.data_file, *run.path.glob("step_*/*/phase.json")]:
            copy = partial / file.relative_to(run.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        partial.rename(self.path / name)

    def steps(self, name: str) -> int:
        """Number of growth steps of a run."""
        return max(record.step for record in self._records(name))

    def accuracy(self, name: str, step: int) -> float:
        """Accuracy in percent after a growth step, averaged over the run's evaluation sets."""
        return fmean(self.figures(name, step).values())

    def figures(self, name: str, step: int) -> dict[str, float]:
        """Accuracy in percent after a growth step by set: top-1, or for retrieval the mean R@1 of both directions."""
        return {result.dataset: result.accuracy for result in self._trained(name, step).evaluation}

    def parameters(self, name: str, step: int) -> int:
        return self._trained(name, step).parameters

    def architecture(self, name: str, step: int) -> Architecture:
        return self._trained(name, step).architecture

    def seconds(self, name: str) -> float:
        """Duration of all phases together."""
        return sum(record.seconds for record in self._records(name))

    def pairs_seen(self, name: str) -> int:
        """Number of pairs seen in the training of all phases together."""
        return sum(record.training.pairs_seen for record in self._records(name) if record.training is not None)

    def _trained(self, name: str, step: int) -> PhaseRecord:
        return RunFolder(self.path / name).record(step, Phase.TRAIN)

    def _records(self, name: str) -> list[PhaseRecord]:
        return list(RunFolder(self.path / name).records())
