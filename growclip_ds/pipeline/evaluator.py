"""Evaluation of a phase's model during and after training, and of a supernet's candidates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from growclip_ds.config.config import Config
from growclip_ds.data.batch import batches_in_order
from growclip_ds.data.stream import TrainingStream
from growclip_ds.evaluation import ModelEncoder, evaluate, retrieve_pairs
from growclip_ds.growth.selection import Candidate, rank_candidates
from growclip_ds.growth.space import GrowthSpace
from growclip_ds.growth.supernet_encoder import SupernetEncoder
from growclip_ds.pipeline.prepare import RunInputs
from growclip_ds.results import Result
from growclip_ds.training.engine import Engine


@dataclass(frozen=True)
class PhaseEvaluator:
    """Evaluates the model that an engine holds.

    All methods but `evaluation_iterations` are collective.

    Attributes:
        config: the run's configuration.
        inputs: the run's data, tokenizer and evaluation sets.
        step: the growth step.
        engine: the engine that holds the model.
        stop_if_asked: called before each set; raises Stopped on every rank if some rank was asked to stop.
    """

    config: Config
    inputs: RunInputs
    step: int
    engine: Engine
    stop_if_asked: Callable[[], None]

    def evaluate(self) -> list[Result]:
        """Evaluates the current model on every reported set."""
        module = self.engine.module
        was_training = module.training
        encoder = ModelEncoder(module, self.engine.device, self.engine.dtype)
        size, batch_size = self.inputs.sizes.image_size, self.config.evaluation.batch_size
        results: list[Result] = []
        for dataset in self.inputs.evaluation_sets:
            self.stop_if_asked()
            results.append(evaluate(encoder, dataset, self.inputs.tokenizer, size, batch_size)[0])
        module.train(was_training)
        return results

    def evaluation_iterations(self, stream: TrainingStream, epochs: int) -> frozenset[int]:
        """The numbers of finished iterations after which to evaluate during training, all before the last."""
        every = self.config.evaluation.every_epochs
        if every is None or not epochs:  # a supernet that inherits and is not trained
            return frozenset()
        batches = every * stream.iterations / epochs  # fractional for streamed data: an epoch's last is short
        done = (math.ceil(batches * number) for number in itertools.count(1))
        return frozenset(itertools.takewhile(lambda iteration: iteration < stream.iterations, done))

    def select(self, space: GrowthSpace) -> tuple[str, Sequence[Candidate]]:
        """Evaluates every candidate with the supernet's weights.

        Returns:
            The name of the set on which the candidates were compared, and the candidates, best by Eq. 7 first.
        """
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
        return results[0].dataset, candidates
