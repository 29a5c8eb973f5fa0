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

VERSION = 1  # of what the figures mean; results of another one are not taken


def folder_beside(weights: Path) -> Path:
    """Where the results of weights in a folder are kept, unless another place is named."""
    return weights.parent / "evaluation"


def results_beside(weights: Path, digest: str) -> dict[str, Result]:
    """What was kept beside a folder of weights, by set: in fp32, of sets called alike the latest.

    Args:
        weights: the folder.
        digest: of the weights; results of others that the folder has held are not taken.
    """
    found: dict[str, Result] = {}
    for file in sorted(folder_beside(weights).glob("*.json"), key=_age):
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            of, result = stored["of"], result_from_json(stored["result"])
            if (of["version"], of["weights"], of["precision"]) == (VERSION, digest, "fp32"):
                found[result.dataset] = result
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no result, or a damaged one, which evaluation would compute again
    return found


def _age(file: Path) -> tuple[int, str]:
    return file.lstat().st_mtime_ns, file.name


@dataclass(frozen=True)
class ResultStore:
    """Results of one model.

    Attributes:
        folder: where they are; may be shared by several models.
        weights: digest of the model's weights,
        tokenizer: and of its tokenizer.
        precision: precision in which the model ran.
    """

    folder: Path
    weights: str
    tokenizer: str
    precision: str

    def file(self, dataset: EvaluationSet) -> Path:
        """Where the result on a set is, or will be."""
        digest = hashlib.blake2b(json.dumps(self._key(dataset)).encode(), digest_size=6).hexdigest()
        name = re.sub(r"[^\w.-]", "_", dataset.name)
        return self.folder / f"{name}-{digest}.json"

    def load(self, dataset: EvaluationSet) -> Result | None:
        """The result on a set; None if there is none of these weights and this very set, or its file is damaged."""
        try:
            stored = json.loads(self.file(dataset).read_text(encoding="utf-8"))
            return result_from_json(stored["result"]) if stored["of"] == self._key(dataset) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, dataset: EvaluationSet, result: Result) -> None:
        """Keeps the result on a set.

        Raises:
            InputError: it cannot be written.
        """
        try:
            write_json(self.file(dataset), {"of": self._key(dataset), "result": result.to_json()})
        except OSError as error:
            raise self._unwritable(error) from error

    def require_writable(self) -> None:
        """Finds out before an evaluation whether its result can be kept.

        Raises:
            InputError: it could not.
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
