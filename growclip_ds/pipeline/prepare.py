"""Opens and checks all inputs of a run besides its configuration, before any training."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from growclip_ds.architecture import ModelSizes
from growclip_ds.config.config import Config
from growclip_ds.config.sections import SetSection
from growclip_ds.data.faults import in_words
from growclip_ds.data.progress import counting
from growclip_ds.data.remote import RemoteShards
from growclip_ds.data.remote_stream import captions as stream_captions
from growclip_ds.data.samples import captions
from growclip_ds.data.shards import ShardIndex
from growclip_ds.data.subsets import OpenSubsets, open_subsets, write_subsets
from growclip_ds.data.tokens import Tokenizer, load_tokenizer, train_tokenizer
from growclip_ds.distributed import on_main
from growclip_ds.errors import InputError
from growclip_ds.evaluation import EvaluationSet, load_evaluation_set
from growclip_ds.files import write_text
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import data_subsets


@dataclass(frozen=True)
class RunInputs:
    """The inputs that all growth steps of a run share.

    Attributes:
        data: the opened data subsets; growth step t trains on the first t.
        tokenizer: the tokenizer of the captions.
        sizes: the sizes of the model's inputs and embedding space.
        evaluation_sets: the sets on which the model of every growth step is evaluated.
        selection_set: the set on which candidates are compared; None for held-out pairs.
    """

    data: OpenSubsets
    tokenizer: Tokenizer
    sizes: ModelSizes
    evaluation_sets: Sequence[EvaluationSet]
    selection_set: EvaluationSet | None

    def samples(self, step: int) -> int:
        """N^t of Eq. 7: number of samples in the first `step` subsets."""
        return sum(subset.samples or 0 for subset in self.data.subsets[:step])


def prepare(config: Config, folder: RunFolder, last_step: int) -> RunInputs:
    """Opens data, tokenizer and evaluation sets; writes `data.yaml` and a trained tokenizer into the run folder.

    Collective.

    Args:
        config: the run's configuration.
        folder: the run's folder.
        last_step: the last growth step to run; the data of later steps need not exist yet.

    Raises:
        InputError: on every rank, if an input cannot be used.
    """
    evaluation_sets = on_main(lambda: [_open_set(one) for one in config.evaluation.datasets])
    dataset = config.selection.dataset
    selection_set = on_main(lambda: None if dataset is None else _open_set(dataset))
    data = _open_data(config, folder.data_file, last_step)
    tokenizer = _open_tokenizer(config, folder.tokenizer, data.first(1).train)
    return RunInputs(data, tokenizer, config.model.sizes(tokenizer.vocab_size), evaluation_sets, selection_set)


def _open_set(section: SetSection) -> EvaluationSet:
    return load_evaluation_set(section.path, section.split, section.name)


def _open_data(config: Config, file: Path, last_step: int) -> OpenSubsets:
    recorded, subsets = on_main(lambda: data_subsets(config, file))
    with counting("indexing shards") as progress:
        opened = open_subsets(
            subsets[:last_step],
            held_out=config.held_out_pairs,
            seed=config.seed,
            progress=progress,
            staged=config.data.staged,
        )
    _check_left_out(opened, config.data.max_broken_share)
    # Subsets that are listed but not used yet are not recorded, even if they are counted: they may still change.
    on_main(lambda: write_subsets([*opened.subsets, *recorded[last_step:]], file))
    return opened


def _check_left_out(data: OpenSubsets, share: float) -> None:
    """Checks that not too many samples are missing from the index.

    Raises:
        InputError: their share exceeds the limit.
    """
    left_out = data.left_out
    missing, there = sum(left_out.values()), sum(subset.samples or 0 for subset in data.subsets)
    if missing > share * (missing + there):
        first = ", ".join(fault.key for fault in itertools.islice(data.faults(), 3))
        raise InputError(
            f"{missing:,} of {missing + there:,} samples cannot be used, more than the {share:.2%} of "
            f"data.max_broken_share: {in_words(left_out)} (such as {first}); `growclip data check` lists them: "
            "repair the shards, or raise the share"
        )


def list_left_out(data: OpenSubsets, folder: RunFolder) -> None:
    """Writes the list of samples missing from the index to the run's folder. Collective."""
    lines = (json.dumps({"key": fault.key, "cause": fault.cause}) + "\n" for fault in data.faults())
    on_main(lambda: write_text(folder.faults("index"), "".join(lines)))


def _open_tokenizer(config: Config, folder: Path, train: ShardIndex | RemoteShards) -> Tokenizer:
    """The run's tokenizer; the first time it is loaded or trained and saved to the run's folder for all later steps."""
    section, context_length = config.data.tokenizer, config.model.context_length

    def make() -> None:
        if folder.exists():
            return
        if section.name_or_path is not None:
            load_tokenizer(section.name_or_path, context_length).save(folder)
        else:
            assert section.vocab_size is not None  # checked by the configuration
            read = captions(train) if isinstance(train, ShardIndex) else stream_captions(train)
            train_tokenizer(read, section.vocab_size, context_length).save(folder)

    on_main(make)
    tokenizer = on_main(lambda: load_tokenizer(folder, context_length))
    if section.name_or_path is not None and section.vocab_size not in (None, tokenizer.vocab_size):
        raise InputError(
            f"data.tokenizer.vocab_size is {section.vocab_size}, but {section.name_or_path} has "
            f"{tokenizer.vocab_size} tokens; set this number or leave it out"
        )
    return tokenizer
