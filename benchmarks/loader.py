"""Compares data loading as in training with webdataset and Pillow as used by open_clip, on one core.

    python benchmarks/loader.py                           # scenes of the built-in data
    python benchmarks/loader.py --pictures FOLDER         # real images: FOLDER has webdataset shards (jpg, txt)

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. Writes results/loader_CPU.json. Takes
about five minutes.

What is compared. Ours: the work of one worker for a batch, by `BatchLoader`: read by the index, decode, resize, crop,
tokenize, and collate as bytes, which become floats on the GPU. Theirs: the webdataset pipeline of open_clip's
`get_wds_dataset` without shuffling: read, decode with Pillow, resize the short side (bicubic), crop the centre, convert
to float, normalise, tokenize, stack. The transforms are torchvision's, reimplemented in PIL and torch, so that
torchvision is not needed. Both use this package's tokenizer, which is faster than open_clip's; theirs tokenizes one
caption at a time, to rows of 77, as open_clip does.

Both read the same tars in the same run, alternately, in one process with one thread. Time is processor time, so that
other work on the machine counts little, and the tars are cached in memory. Before anything is timed, images decoded in
exact mode are checked to equal Pillow's bit for bit, and the others to be close to them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from benchmarks.captions import built_in_tokenizer, pad
from benchmarks.pictures import QUALITY, makers, write_shard
from growclip_ds.data.batch import BatchDecoder, BatchLoader
from growclip_ds.data.jpeg import decode_scaled, scale_for
from growclip_ds.data.pictures import MEAN, STD, decode_picture
from growclip_ds.data.samples import Sample, ShardReader
from growclip_ds.data.shards import ShardIndex, index_shards
from growclip_ds.data.tokens import Tokenizer

SIZE = 224
CONTEXT_LENGTH = 77
BATCH = 50
SHAPES = {(512, 384): 2.0, (1024, 768): 3.0}  # target speed, as a multiple of webdataset's
MOST_DIFFERENCE = 3.0  # of 255, mean over the images
LIBRARIES = ("pillow", "simplejpeg", "webdataset")
COLUMNS = {
    "kind": ("pictures", ""),
    "size": ("size", ""),
    "bits_per_pixel": ("bits/pixel", ".1f"),
    "ours_per_s": ("ours/s", ".0f"),
    "theirs_per_s": ("webdataset + Pillow/s", ".0f"),
    "ratio": ("ratio", ".2f"),
    "least_ratio": ("least", ".2f"),
    "most_ratio": ("most", ".2f"),
    "target": ("target", ".1f"),
    "difference": ("difference", ".2f"),
    "worst_picture": ("worst picture", ".2f"),
    "difference_p99": ("99th percentile", ".0f"),
}
STAGES = ("read", "decode", "resize, crop", "to float", "tokenize", "rest", "all")


class OpenClip:
    """open_clip's image transforms: torchvision's Resize, CenterCrop, ToTensor and Normalize."""

    def __init__(self) -> None:
        self._mean, self._std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def resize_and_crop(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        short = min(width, height)
        wide, high = (SIZE if side == short else int(SIZE * side / short) for side in (width, height))
        left, top = round((wide - SIZE) / 2), round((high - SIZE) / 2)
        resized = picture.resize((wide, high), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + SIZE, top + SIZE)).convert("RGB")

    def to_tensor(self, picture: Image.Image) -> Tensor:
        """(3, SIZE, SIZE) float32, normalised."""
        pixels = torch.from_numpy(np.array(picture, copy=True)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(self._mean).div_(self._std)

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.to_tensor(self.resize_and_crop(picture))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of webdataset shards with real images (jpg, txt)")
    parser.add_argument("--samples", type=int, default=200, help="number of images of each size")
    parser.add_argument("--rounds", type=int, default=9, help="rounds in which each loader is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in a data loading worker
    tokenizer = built_in_tokenizer(context_length=CONTEXT_LENGTH)
    rows = []
    for kind, make in makers(arguments.pictures).items():
        for (width, height), target in SHAPES.items():
            with tempfile.TemporaryDirectory() as folder:
                shard = Path(folder) / "00000.tar"
                bits = write_shard(shard, make, arguments.samples, width, height)
                row = {"kind": kind, "size": f"{width}×{height}", "bits_per_pixel": bits, "target": target}
                rows.append(row | measure(shard, tokenizer, arguments.rounds))
            print(common.markdown_table(rows[-1:], COLUMNS), stages_table(rows[-1]), sep="\n\n", end="\n\n", flush=True)
    print(common.markdown_table(rows, COLUMNS))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    source = "real images" if arguments.pictures else "built-in scenes"
    notes = [
        f"{arguments.samples} JPEGs of quality {QUALITY} per row, of {source} (kinds: benchmarks/pictures.py)",
        f"samples per second of processor time, median of {arguments.rounds} rounds; ratio: median of the ratios",
        "difference: between the images' bytes and Pillow's, of 255; percentile over all bytes",
        f"to {SIZE} × {SIZE}, batches of {BATCH}, one thread; {versions}",
    ]
    print(common.write_results("loader", rows, torch.device("cpu"), {}, notes))


def measure(shard: Path, tokenizer: Tokenizer, rounds: int) -> dict[str, Any]:
    index = index_shards([shard])
    samples = read_all(index)
    row: dict[str, Any] = differences(samples)
    ours, theirs = our_stages(index, samples, tokenizer), their_stages(shard, samples, tokenizer)
    turns: list[dict[str, list[float]]] = [{name: [] for name in stages} for stages in (ours, theirs)]
    for turn in range(rounds + 1):
        for stages, durations in zip((ours, theirs), turns, strict=True):
            for name, stage in stages.items():
                start = time.process_time()
                stage()
                if turn:  # the first warms up
                    durations[name].append(1000 * (time.process_time() - start) / len(samples))
    ratios = [slow / fast for fast, slow in zip(*(durations["all"] for durations in turns), strict=True)]
    ours_ms, theirs_ms = ({name: statistics.median(ms) for name, ms in durations.items()} for durations in turns)
    ours_ms["resize, crop"] = ours_ms.pop("decode, resize, crop") - ours_ms["decode"]
    for stages in (ours_ms, theirs_ms):
        stages["rest"] = 2 * stages["all"] - sum(stages.values())
    return row | {
        "samples": len(samples),
        "ours_per_s": 1000 / ours_ms["all"],
        "theirs_per_s": 1000 / theirs_ms["all"],
        "ratio": statistics.median(ratios),
        "least_ratio": min(ratios),
        "most_ratio": max(ratios),
        "ours_ms": ours_ms,
        "theirs_ms": theirs_ms,
    }


def read_all(index: ShardIndex) -> list[Sample]:
    reader = ShardReader(index)
    return [reader.read(position) for position in range(len(index))]


def differences(samples: list[Sample]) -> dict[str, Any]:
    """Differences from Pillow's images, of 255.

    Raises:
        SystemExit: an image decoded in exact mode differs from Pillow's, or the others differ too much on average.
    """
    transform, each = OpenClip(), []
    for sample in samples:
        expected = np.asarray(transform.resize_and_crop(pillow(sample))).transpose(2, 0, 1).astype(np.int16)
        if not np.array_equal(decode_picture(sample.picture, SIZE, exact=True).numpy(), expected):
            raise SystemExit(f"{sample.key}: the image decoded in exact mode differs from Pillow's")
        each.append(np.abs(decode_picture(sample.picture, SIZE).numpy() - expected))
    means = [float(difference.mean()) for difference in each]
    if statistics.mean(means) >= MOST_DIFFERENCE:
        raise SystemExit(
            f"images differ from Pillow's by {statistics.mean(means):.2f} of 255 on average, and {MOST_DIFFERENCE} is "
            "too much"
        )
    return {
        "difference": statistics.mean(means),
        "worst_picture": max(means),
        "difference_p99": float(np.percentile(np.stack(each), 99)),
    }


def our_stages(index: ShardIndex, samples: list[Sample], tokenizer: Tokenizer) -> dict[str, Callable[[], Any]]:
    """Loading of all samples as in a worker, and its parts; the rest is collation."""
    loader = BatchLoader(index, BatchDecoder(tokenizer, SIZE))
    batches = [range(start, min(start + BATCH, len(samples))) for start in range(0, len(samples), BATCH)]
    sizes = [Image.open(io.BytesIO(sample.picture)).size for sample in samples]
    captions = [sample.caption.decode() for sample in samples]

    def load() -> None:
        assert sum(len(loader[batch].batch) for batch in batches) == len(samples)

    def decode() -> None:
        for sample, (width, height) in zip(samples, sizes, strict=True):
            decode_scaled(sample.picture, width, height, scale_for(min(width, height), SIZE))

    return {
        "all": load,
        "read": lambda: read_all(index),
        "decode": decode,
        "decode, resize, crop": lambda: [decode_picture(sample.picture, SIZE).shape for sample in samples],
        "tokenize": lambda: [tokenizer(captions[batch.start : batch.stop]) for batch in batches],
    }


def their_stages(shard: Path, samples: list[Sample], tokenizer: Tokenizer) -> dict[str, Callable[[], Any]]:
    """The same for webdataset; the rest is stacking and webdataset's own overhead."""
    transform = OpenClip()
    decoded = [pillow(sample) for sample in samples]
    cropped = [transform.resize_and_crop(picture) for picture in decoded]

    def tokenize(text: str) -> Tensor:
        return pad(tokenizer([text]), CONTEXT_LENGTH)[0]

    def read() -> webdataset.DataPipeline:
        return webdataset.DataPipeline(webdataset.SimpleShardList([str(shard)]), webdataset.tarfile_to_samples())

    def load() -> None:
        dataset = read().compose(
            webdataset.decode("pilrgb"),
            webdataset.rename(image="jpg;png;jpeg;webp", text="txt"),
            webdataset.map_dict(image=transform, text=tokenize),
            webdataset.to_tuple("image", "text"),
            webdataset.batched(BATCH),
        )
        assert sum(len(images) for images, _ in dataset) == len(samples)

    return {
        "all": load,
        "read": lambda: list(map(len, read())),
        "decode": lambda: [pillow(sample).size for sample in samples],
        "resize, crop": lambda: [transform.resize_and_crop(picture).size for picture in decoded],
        "to float": lambda: [transform.to_tensor(picture).shape for picture in cropped],
        "tokenize": lambda: [tokenize(sample.caption.decode()) for sample in samples],
    }


def pillow(sample: Sample) -> Image.Image:
    return Image.open(io.BytesIO(sample.picture)).convert("RGB")


def stages_table(row: dict[str, Any]) -> str:
    columns = {"": ("ms per sample", "")} | {stage: (stage, ".2f") for stage in STAGES}
    named = {"ours": row["ours_ms"], "webdataset + Pillow": row["theirs_ms"]}
    return common.markdown_table([{"": name} | stages for name, stages in named.items()], columns)


if __name__ == "__main__":
    main()
