"""What the model of a phase is worth: after its training, in the course of it, and as a supernet of candidates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from growclip_ds.config.config import Config
from growclip_ds.data.batch import batches_in_order
from growclip_ds.data.stream import TrainingStream
from growclip_ds.evaluation import ClassificationResult, ModelEncoder, RetrievalResult, evaluate, retrieve_pairs
from growclip_ds.growth.selection import rank_candidates
from growclip_ds.growth.space import GrowthSpace
from growclip_ds.growth.supernet_encoder import SupernetEncoder
from growclip_ds.monitor import Monitor
from growclip_ds.pipeline.prepare import RunInputs
from growclip_ds.training.engine import Engine

Results = Sequence[ClassificationResult | RetrievalResult]


@dataclass(frozen=True)
class Judge:
    """Evaluates the model that an engine holds, and keeps what it finds in the phase's record.

    All methods but `iterations` are collective.

    Attributes:
        config: of the run.
        inputs: of the run.
        monitor: told what is found.
        step: the growth step.
        engine: with the model.
        record: of the phase; gets `evaluation`, points of its `curve`, `selection_set` and `candidates`.
        stop_if_asked: called before each set; raises Stopped on every rank if some rank was asked to stop.
    """

    config: Config
    inputs: RunInputs
    monitor: Monitor
    step: int
    engine: Engine
    record: dict[str, Any]
    stop_if_asked: Callable[[], None]

    def evaluate(self) -> None:
        """Evaluates the trained model on every set that is reported."""
        results = self._evaluate()
        self.record["evaluation"] = [result.to_json() for result in results]
        if self.config.evaluation.every_epochs is not None:
            self._add_to_curve(self.record["iterations"], results)
        self.monitor.evaluation(self.step, results)

    def iterations(self, stream: TrainingStream, epochs: int) -> frozenset[int]:
        """After which iterations the model is evaluated while it is trained; the end of the phase is none of them."""
        every = self.config.evaluation.every_epochs
        if every is None or not epochs:  # a supernet that only inherits
            return frozenset()
        batches = every * stream.iterations / epochs  # of streamed data, an epoch's last one is short
        done = (math.ceil(batches * number) for number in itertools.count(1))
        return frozenset(itertools.takewhile(lambda iteration: iteration < stream.iterations, done))

    def evaluate_in_between(self, iteration: int) -> None:
        """Evaluates the model after an iteration of its training, unless that was done before it was interrupted."""
        if all(point["iteration"] != iteration for point in self.record["curve"]):
            self._add_to_curve(iteration, self._evaluate())

    def select(self, space: GrowthSpace) -> None:
        """Evaluates every candidate with the supernet's weights and records them, best by Eq. 7 first."""
        encoder = SupernetEncoder(self.engine.module, space.candidates)
        size, batch_size = self.inputs.sizes.image_size, self.config.selection.batch_size
        if self.inputs.selection_set is None:
            held_out = self.inputs.data.first(self.step).held_out
            batches = batches_in_order(held_out, self.inputs.tokenizer, size, batch_size)
            results = retrieve_pairs(encoder, batches, size)
        else:
            results = evaluate(encoder, self.inputs.selection_set, self.inputs.tokenizer, size, batch_size)
        accuracies = dict(zip(space, (result.accuracy for result in results), strict=True))
        candidates = rank_candidates(
            accuracies,
            self.inputs.sizes.parameters_of,
            space.supernet,
            self.inputs.samples(self.step - 1),
            self.inputs.samples(self.step),
            self.config.growth.alpha,
        )
        self.record["selection_set"] = results[0].dataset
        self.record["candidates"] = [candidate.to_json() for candidate in candidates]
        self.monitor.selection(self.step, candidates)

    def _evaluate(self) -> Results:
        module = self.engine.module
        was_training = module.training
        encoder = ModelEncoder(module, self.engine.device, self.engine.dtype)
        size, batch_size = self.inputs.sizes.image_size, self.config.evaluation.batch_size
        results = []
        for dataset in self.inputs.evaluation_sets:
            self.stop_if_asked()
            results.append(evaluate(encoder, dataset, self.inputs.tokenizer, size, batch_size)[0])
        module.train(was_training)
        return results

    def _add_to_curve(self, iteration: int, results: Results) -> None:
        point = {"iteration": iteration, "evaluation": [result.to_json() for result in results]}
        self.record["curve"].append(point)
        self.monitor.curve(iteration, results)
