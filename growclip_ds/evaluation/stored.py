"""Results on disk, one file a set, so that an interrupted evaluation goes on with the sets that it lacks."""

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
from growclip_ds.evaluation.results import ClassificationResult, RetrievalResult, result_from_json
from growclip_ds.files import write_json

VERSION = 1  # of what the figures mean; results of another one are not taken


@dataclass(frozen=True)
class ResultStore:
    """Results of one model.

    Attributes:
        folder: where they are; may be shared by several models.
        weights: digest of the model's weights,
        tokenizer: and of its tokenizer.
        precision: that it was run in.
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

    def load(self, dataset: EvaluationSet) -> ClassificationResult | RetrievalResult | None:
        """The result on a set; None if there is none of these weights and this very set, or its file is damaged."""
        try:
            stored = json.loads(self.file(dataset).read_text(encoding="utf-8"))
            return result_from_json(stored["result"]) if stored["of"] == self._key(dataset) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, dataset: EvaluationSet, result: ClassificationResult | RetrievalResult) -> None:
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
