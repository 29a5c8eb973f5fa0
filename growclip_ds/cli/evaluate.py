"""`growclip evaluate`: zero-shot classification and retrieval with a model, in one process or on many ranks."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from growclip_ds.cli.output import STANDARD_OUTPUT, check_place, put_json
from growclip_ds.errors import InputError

if TYPE_CHECKING:
    from growclip_ds.evaluation import CandidateEncoder, EvaluationSet
    from growclip_ds.evaluation.subject import Subject
    from growclip_ds.results import Result

# Launchers of several ranks set one of these in each of them.
_LAUNCHED = ("RANK", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def add_evaluate_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = (
        "Evaluates a model zero-shot on sets in CLIP-benchmark's webdataset layout: classification with the prompts of "
        "each class averaged (top-1, top-5, mean per class), retrieval in both directions (R@1, 5, 10). Every set's "
        "result is stored, so an interrupted evaluation continues with the missing sets. Runs as one process, or on "
        "many ranks under torchrun, deepspeed or srun."
    )
    parser.epilog = (
        "Examples:\n\n"
        "  growclip evaluate runs/mine\n"
        "  growclip evaluate runs/mine --step 2 --config configs/eval/paper.yaml --root sets --json results.json\n"
        "  growclip evaluate folder/of/a/clip --sets sets/wds_food101 --device cpu\n\n"
        "On eight GPUs:\n\n"
        "  torchrun --nproc-per-node 8 -m growclip_ds evaluate runs/mine --config configs/eval/paper.yaml"
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a checkpoint, a run, or an exported model or CLIP in Hugging Face format",
    )
    parser.add_argument("--step", type=int, metavar="N", help="growth step of a run (default: the newest trained)")
    parser.add_argument(
        "--sets",
        nargs="+",
        metavar="SET",
        default=[],
        help="folders or URLs of sets; with --config, names of sets in that list (default: all of --config, or "
        "those that the run reports)",
    )
    parser.add_argument("--config", metavar="FILE", help="a list of sets, such as configs/eval/paper.yaml")
    parser.add_argument("--root", metavar="DIR", help="the folder of the list's sets, overriding the list's own")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="folder or name of a tokenizer (default: that beside the model)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="images or prompts per forward pass of a rank"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="precision of the model (default: fp32)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file; - prints them instead")
    parser.add_argument(
        "--tensorboard",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="DIR",
        help="add the results to a TensorBoard folder (default: the run's)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of the stored results (default: evaluation/ beside the model)",
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    if options.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported
    with _process_group():
        _evaluate_on_rank(options)
    return 0


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """Joins the process group if a launcher started this process; an error, on one rank or all, is reported once."""
    import torch.distributed as dist

    if dist.is_initialized() or not any(variable in os.environ for variable in _LAUNCHED):
        yield
        return
    # Imports DeepSpeed, which takes a while.
    from growclip_ds.distributed.rendezvous import init_distributed, leave_distributed
    from growclip_ds.distributed.watchdog import start_watchdog

    init_distributed()
    watch = start_watchdog(math.inf, "growclip")
    try:
        yield
    except BaseException as error:  # it may be on this rank alone, while the others wait for it
        watch.fail(error)
    watch.close()
    leave_distributed()


def _evaluate_on_rank(options: argparse.Namespace) -> None:
    import torch

    from growclip_ds.distributed import is_main, on_every_rank, on_main
    from growclip_ds.evaluation import ModelEncoder, evaluate
    from growclip_ds.evaluation.report import one_line
    from growclip_ds.evaluation.stored import ResultStore, folder_beside
    from growclip_ds.evaluation.subject import choose_device, digest_of_tokenizer, find_subject
    from growclip_ds.model.precision import use_full_fp32
    from growclip_ds.training.memory_errors import memory_explained

    if options.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {options.batch_size}")
    check_place(options.json)
    use_full_fp32()  # stored results say fp32, whatever the device
    device = on_every_rank(lambda: choose_device(options.device, int(os.environ.get("LOCAL_RANK", "0"))))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    subject = on_main(lambda: find_subject(options.model, options.step))
    tensorboard = _tensorboard_folder(options.tensorboard, subject)
    sets = on_main(lambda: _load_sets(options, subject))
    model = on_every_rank(subject.load)
    tokenizer = on_every_rank(lambda: subject.tokenizer(options.tokenizer, model.sizes, model.end_of_text))
    size = model.sizes.image_size
    encoder = ModelEncoder(model.to(device, dtype), device, dtype)
    folder = options.results or folder_beside(subject.folder)
    store = ResultStore(folder, subject.digest, digest_of_tokenizer(tokenizer), options.precision)

    stored = on_main(lambda: [store.load(dataset) for dataset in sets])
    if None in stored:
        on_main(store.require_writable)
    results = []
    for dataset, result in zip(sets, stored, strict=True):
        start = time.monotonic()
        source = f"from {store.file(dataset)}"
        if result is None:
            explained = memory_explained(dataset.name, f"lower --batch-size (now {options.batch_size:,})")
            with explained, _with_progress(encoder, dataset) as encoder_of_set:
                (result,) = evaluate(encoder_of_set, dataset, tokenizer, size, options.batch_size)
            on_main(partial(store.save, dataset, result))
            source = f"{time.monotonic() - start:.0f} s"
        if is_main():
            print(f"{dataset.name}: {one_line(result)} ({source})", file=sys.stderr, flush=True)
        results.append(result)
    on_main(partial(_report, options, subject, results, tensorboard))


@contextlib.contextmanager
def _with_progress(encoder: CandidateEncoder, dataset: EvaluationSet) -> Iterator[CandidateEncoder]:
    """The encoder, with a progress bar of this rank's images of a set if it would be seen."""
    from growclip_ds.data.progress import counting
    from growclip_ds.distributed import world_size
    from growclip_ds.evaluation.encoder import CountingEncoder

    share = None if dataset.samples is None else dataset.samples // world_size()
    with counting(dataset.name) as progress:
        yield encoder if progress is None else CountingEncoder(encoder, share, progress)


def _load_sets(options: argparse.Namespace, subject: Subject) -> list[EvaluationSet]:
    """Opens and checks the sets to evaluate on."""
    from growclip_ds.evaluation import load_evaluation_set

    places = _places(options, subject)
    if not places:
        raise InputError("no sets to evaluate on; name some (--sets), or a list of them (--config)")
    sets = []
    for place in places:
        sets.append(load_evaluation_set(*place))
        names = [dataset.name for dataset in sets]
        if names.count(names[-1]) > 1:
            raise InputError(f"two sets are called {names[-1]!r}; give them different names in a list (--config)")
    return sets


def _places(options: argparse.Namespace, subject: Subject) -> list[tuple[str, ...]]:
    """The arguments of `load_evaluation_set` for each set."""
    from growclip_ds.config.config import load_config
    from growclip_ds.evaluation.lists import read_list

    if options.config is not None:
        listed = read_list(options.config, options.root, options.sets)
        return [(listed.location(one), one.split, one.name) for one in listed.sets]
    if options.root is not None:
        raise InputError("--root is where the sets of a list are; name the list (--config)")
    if options.sets or subject.run is None:
        return [(location,) for location in options.sets]
    reported = load_config(subject.run.config_file).evaluation.datasets
    return [(one.path, one.split, one.name) for one in reported]


def _tensorboard_folder(given: Path | None, subject: Subject) -> Path | None:
    """The folder for event files; None: write none. An empty path stands for the run's folder."""
    if given != Path():
        return given
    if subject.run is None:
        raise InputError(f"{subject.folder} does not belong to a run; name the folder: --tensorboard DIR")
    return subject.run.tensorboard / "evaluation"


def _report(options: argparse.Namespace, subject: Subject, results: Sequence[Result], tensorboard: Path | None) -> None:
    from growclip_ds.evaluation.report import print_results, results_json, write_tensorboard

    if options.json != STANDARD_OUTPUT:
        print_results(results)
    if options.json is not None:
        head = {
            "model": str(subject.folder),
            "weights": subject.digest,
            "growth_step": subject.growth_step,
            "architecture": subject.architecture and asdict(subject.architecture),
            "precision": options.precision,
        }
        put_json(options.json, head | results_json(results))
    try:
        if tensorboard is not None:
            write_tensorboard(tensorboard, results, subject.growth_step or 0)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written ({error.strerror}); name another place") from error
