"""Stored results, one file per set, so that an interrupted evaluation continues with the missing sets."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growclip_ds.errors import InputError
from growclip_ds.evaluation.datasets import EvaluationSet
from growclip_ds.files import write_json
from growclip_ds.results import Result, result_from_json

VERSION = 1  # of the metrics' definitions; results of another version are ignored


def folder_beside(weights: Path) -> Path:
    """The default folder for the results of a model, given the folder of its weights."""
    return weights.parent / "evaluation"


def results_beside(weights: Path, digest: str) -> dict[str, Result]:
    """The results in fp32 that are stored beside a folder of weights, by set; of sets of the same name the latest.

    Args:
        weights: the folder of the weights.
        digest: digest of the weights; results of other weights that the folder has held are ignored.
    """
    found: dict[str, Result] = {}
    for file in sorted(folder_beside(weights).glob("*.json"), key=_age):
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            of, result = stored["of"], result_from_json(stored["result"])
            if (of["version"], of["weights"], of["precision"]) == (VERSION, digest, "fp32"):
                found[result.dataset] = result
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a result, or a damaged one, which an evaluation would recompute
    return found


def _age(file: Path) -> tuple[int, str]:
    return file.lstat().st_mtime_ns, file.name


@dataclass(frozen=True)
class ResultStore:
    """The stored results of one model.

    Attributes:
        folder: folder of the results, which several models may share.
        weights: digest of the model's weights.
        tokenizer: digest of its tokenizer.
        precision: precision in which the model is run.
    """

    folder: Path
    weights: str
    tokenizer: str
    precision: str

    def file(self, dataset: EvaluationSet) -> Path:
        """The file of the result on a set, whether or not it exists."""
        digest = hashlib.blake2b(json.dumps(self._key(dataset)).encode(), digest_size=6).hexdigest()
        name = re.sub(r"[^\w.-]", "_", dataset.name)
        return self.folder / f"{name}-{digest}.json"

    def load(self, dataset: EvaluationSet) -> Result | None:
        """The result on a set; None if there is none for this model and this very set, or its file is damaged."""
        try:
            stored = json.loads(self.file(dataset).read_text(encoding="utf-8"))
            return result_from_json(stored["result"]) if stored["of"] == self._key(dataset) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, dataset: EvaluationSet, result: Result) -> None:
        """Stores the result on a set.

        Raises:
            InputError: the result cannot be written.
        """
        try:
            write_json(self.file(dataset), {"of": self._key(dataset), "result": result.to_json()})
        except OSError as error:
            raise self._unwritable(error) from error

    def require_writable(self) -> None:
        """Checks, before an evaluation, that its results can be written.

        Raises:
            InputError: they cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.folder} cannot be written ({error.strerror}); name another folder for results (--results)"
        )

    def _key(self, dataset: EvaluationSet) -> dict[str, Any]:
        return {
            "version": VERSION,
            "weights": self.weights,
            "tokenizer": self.tokenizer,
            "precision": self.precision,
            "set": dataset.name,
            "identity": dataset.identity,
        }
