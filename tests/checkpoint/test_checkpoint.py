"""The one format on disk: whole or absent, the same from any number of ranks, and damage is found and named."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.checkpoint import checkpoint as checkpoint_module
from growclip_ds.checkpoint.checkpoint import (
    Checkpoint,
    DamagedError,
    load_model,
    owners,
    save_model,
    write_checkpoint,
)
from growclip_ds.checkpoint.writing import index_checksum
from growclip_ds.distributed import rank, world_size
from growclip_ds.errors import InputError
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.spec import GrowCLIPSpec
from tests.group import Groups

ARCHITECTURE = Architecture(1, 1, 1, 2, 2, 1)
SIZES = ModelSizes(vocab_size=50, context_length=12, image_size=32, embed_dim=24)


def make_model() -> GrowCLIP:
    torch.manual_seed(5)
    return GrowCLIP(ARCHITECTURE, 50, 12, 32, 24, end_of_text=7)


def assert_same_weights(model: GrowCLIP, other: GrowCLIP) -> None:
    assert (model.architecture, model.sizes, model.end_of_text) == (other.architecture, other.sizes, other.end_of_text)
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, theirs.pop(name)), name
    assert not theirs


def write(folder: Path, tensors: dict[str, Tensor], owner: Callable[[str], int] | None = None, **description) -> None:
    """Writes tensors that every rank has, each handing over its own only."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    owner = owner or owners(shapes, world_size()).__getitem__
    pairs = ((name, tensor if owner(name) == rank() else None) for name, tensor in tensors.items())
    write_checkpoint(folder, pairs, shapes, owner, description)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (40, 3), "b": (7,), "c": (5, 5, 5), "exp_avg/a": (40, 3), "scalar": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save_on_rank(folder: Path) -> None:
    save_model(make_model(), folder, growth_step=3)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_model_returns_from_whatever_number_of_ranks(tmp_path: Path, group: Groups, ranks: int) -> None:
    folder = tmp_path / "run" / "weights"
    group(ranks).run(save_on_rank, folder)
    assert listed(folder.parent) == ["weights"]
    files = {f"weights-{r:05d}-of-{ranks:05d}.safetensors" for r in range(ranks)}
    assert listed(folder) == sorted(files | {"weights.json"})

    model = make_model()
    assert_same_weights(load_model(folder), model)
    checkpoint = Checkpoint(folder)
    checkpoint.verify()
    assert checkpoint.names == [name for name, _ in model.named_parameters()]
    assert checkpoint.shape("logit_scale") == (1,)
    assert checkpoint.description == GrowCLIPSpec(ARCHITECTURE, SIZES, 7).describe() | {"growth_step": 3}
    # The ranks share the work: each file holds its share of the bytes, and a tensor is in one file only.
    parts = [load_file(folder / file) for file in files]
    assert sum(map(len, parts)) == len(checkpoint.names)
    total = sum(parameter.numel() for parameter in model.parameters())
    largest = max(parameter.numel() for parameter in model.parameters())
    assert max(sum(t.numel() for t in part.values()) for part in parts) <= total / ranks + largest


def write_on_rank(folder: Path, owning_rank: int | None) -> None:
    write(folder, some_tensors(), None if owning_rank is None else lambda _: owning_rank, phase="select")


@pytest.mark.parametrize("owning_rank", [None, 0, 1])
def test_any_tensors_and_a_rank_may_own_none(tmp_path: Path, group: Groups, owning_rank: int | None) -> None:
    group(2).run(write_on_rank, tmp_path / "state", owning_rank)
    checkpoint = Checkpoint(tmp_path / "state")
    assert checkpoint.description == {"phase": "select"}
    tensors = some_tensors()
    assert checkpoint.names == list(tensors)
    assert "exp_avg/a" in checkpoint
    assert "exp_avg/b" not in checkpoint
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)
    with pytest.raises(InputError, match="state: the checkpoint has no tensor d"):
        checkpoint.read("d")
    with pytest.raises(InputError, match=r"weights\.json: the description has no \w+, so these are not a model's"):
        load_model(tmp_path / "state")


def test_a_tensor_read_is_the_callers_own(tmp_path: Path) -> None:
    write(tmp_path / "state", some_tensors())
    checkpoint = Checkpoint(tmp_path / "state")
    checkpoint.read("a").zero_()
    assert torch.equal(checkpoint.read("a"), some_tensors()["a"])
    assert torch.equal(Checkpoint(tmp_path / "state").read("a"), some_tensors()["a"])


def open_files(folder: Path) -> int:
    return sum(str(folder) in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())


def test_few_files_of_many_ranks_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "MOST_OPEN", 2)
    index: dict[str, Any] = {"files": {}, "tensors": {}}
    for name, tensor in some_tensors().items():  # each by a rank of its own
        part = tmp_path / name.replace("/", "_")
        write(part, {name: tensor})
        written = json.loads((part / "weights.json").read_text())
        ((file, size),) = written["files"].items()
        moved = f"{part.name}-{file}"
        (part / file).rename(tmp_path / moved)
        index["files"][moved] = size
        index["tensors"][name] = written["tensors"][name] | {"file": moved}
    index = written | index
    (tmp_path / "weights.json").write_text(json.dumps(index | {"crc32": index_checksum(index)}))
    checkpoint = Checkpoint(tmp_path)
    for _ in range(2):
        for name, tensor in some_tensors().items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert 1 <= open_files(tmp_path) <= 2
    checkpoint.close()
    assert open_files(tmp_path) == 0
    checkpoint.read("a")
    del checkpoint
    assert open_files(tmp_path) == 0


def test_owners_balance_bytes_alike_everywhere() -> None:
    shapes = Architecture(2, 10, 10, 6, 8, 4).parameter_shapes(ModelSizes())
    bytes_of = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    for ranks in (2, 4, 16):
        owner = owners(shapes, ranks)
        assert owner == owners(dict(reversed(shapes.items())), ranks)
        assert owner.keys() == shapes.keys()
        loads = [sum(bytes_of[name] for name in shapes if owner[name] == r) for r in range(ranks)]
        fair = max(sum(loads) / ranks, bytes_of["text.embedding.tokens"])  # no tensor is divided
        assert max(loads) <= 1.01 * fair


def test_writes_a_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in ("a", "b", "c"):
            assert not any(reference() is not None for reference in alive)
            tensor = torch.zeros(10)
            alive.append(weakref.ref(tensor))
            pair = (name, tensor)
            del tensor
            yield pair
            del pair

    write_checkpoint(tmp_path / "state", tensors(), dict.fromkeys("abc", (10,)), lambda _: 0, {})
    assert len(alive) == 3


def failing_tensors() -> Iterator[tuple[str, Tensor]]:
    yield "a", torch.zeros(2)
    raise RuntimeError("in the middle")


def test_an_exception_in_the_middle_leaves_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with pytest.raises(RuntimeError, match="in the middle"):
        write_checkpoint(folder, failing_tensors(), {"a": (2,), "b": (2,)}, lambda _: 0, {})
    assert not folder.exists()
    with pytest.raises(ValueError, match="1 tensors were not written, such as b"):
        write_checkpoint(folder, [("a", torch.zeros(2))], {"a": (2,), "b": (2,)}, lambda _: 0, {})
    assert not folder.exists()
    write(folder, some_tensors())
    assert listed(tmp_path) == ["state"]  # nothing of the failed ones is left


KILLED = """
import sys, time, torch
from growclip_ds.checkpoint.checkpoint import write_checkpoint

def tensors():
    yield "a", torch.ones(100_000)
    print("in the middle", flush=True)
    time.sleep(60)

write_checkpoint(sys.argv[1], tensors(), {"a": (100_000,), "b": (2,)}, lambda _: 0, {})
"""


def test_a_kill_in_the_middle_leaves_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert listed(tmp_path) == [".state.partial"]
    with pytest.raises(InputError, match="no checkpoint there"):
        Checkpoint(folder)
    (tmp_path / ".state.partial" / "weights-00001-of-00002.safetensors").touch()  # as of more ranks
    write(folder, some_tensors())
    assert listed(tmp_path) == ["state"]
    assert listed(folder) == ["weights-00000-of-00001.safetensors", "weights.json"]
    Checkpoint(folder).verify()


def write_with_little_room(folder: Path) -> str:
    """Rank 1 may write files of 50 kB only, while every tensor takes all ranks to make."""

    def tensors() -> Iterator[tuple[str, Tensor | None]]:
        for number in range(4):
            torch.distributed.barrier()
            yield f"t{number}", torch.zeros(20_000) if number % 2 == rank() else None

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        shapes = {f"t{number}": (20_000,) for number in range(4)}
        write_checkpoint(folder, tensors(), shapes, lambda name: int(name[1]) % 2, {})
    except InputError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "written"


def test_a_full_disk_on_one_rank_is_one_error_on_all(tmp_path: Path, group: Groups) -> None:
    messages = group(2).run(write_with_little_room, tmp_path / "state", limit=30)
    assert messages[0] == messages[1]
    assert "weights-00001-of-00002.safetensors cannot be written" in messages[0]
    assert "make room" in messages[0]
    assert not (tmp_path / "state").exists()


def test_room_is_asked_for_only_where_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: .*; check its file system and your permissions"):
        write(tmp_path / "file" / "state", {"a": torch.zeros(1)})


def test_an_existing_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "state", some_tensors())
    with pytest.raises(InputError, match="state exists already; remove it first"):
        write(tmp_path / "state", {"a": torch.zeros(1)})
    Checkpoint(tmp_path / "state").verify()


def edit_index(folder: Path, edit: Callable[[dict], object]) -> None:
    index = json.loads((folder / "weights.json").read_text())
    edit(index)
    index["crc32"] = index_checksum(index)
    (folder / "weights.json").write_text(json.dumps(index))


def flip_a_bit(folder: Path) -> None:
    """In the last byte of the data."""
    file = folder / "weights-00000-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(folder: Path) -> None:
    file = folder / "weights-00000-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


FILE = r"weights-00000-of-00001\.safetensors: "
DAMAGES = {
    "a bit": (flip_a_bit, FILE + r".* is damaged \(its checksum differs\); copy the checkpoint again"),
    "a file cut": (cut, FILE + r"\d+ bytes instead of \d+; the checkpoint is incomplete"),
    "a file missing": (
        lambda folder: (folder / "weights-00000-of-00001.safetensors").unlink(),
        FILE + "no such file; the checkpoint is incomplete",
    ),
    "the header": (
        lambda folder: (folder / "weights-00000-of-00001.safetensors").write_bytes(
            b"\xff" * (folder / "weights-00000-of-00001.safetensors").stat().st_size
        ),
        FILE + "logit_scale cannot be read",
    ),
    "the index missing": (lambda folder: (folder / "weights.json").unlink(), r"state: no checkpoint there"),
    "the index cut": (lambda folder: (folder / "weights.json").write_text('{"format'), r"weights\.json: damaged"),
    "a digit of the index": (
        lambda folder: (folder / "weights.json").write_text(
            (folder / "weights.json").read_text().replace('"end_of_text": 7', '"end_of_text": 6')
        ),
        r"weights\.json: damaged \(its checksum differs\)",
    ),
    "the index emptied": (lambda folder: (folder / "weights.json").write_text("[]"), r"weights\.json: damaged"),
    "another version": (
        lambda folder: edit_index(folder, lambda index: index.update(version=2)),
        r"weights\.json: format 'growclip-weights' version 2; this program reads .* version 1",
    ),
    "another architecture": (
        lambda folder: edit_index(folder, lambda index: index["description"]["architecture"].update(text_heads=3)),
        r"state: text\.embedding\.tokens has shape \(50, 128\), but \(1, 1, 1, 2, 3, 1\) needs \(50, 192\)",
    ),
    "more layers": (
        lambda folder: edit_index(folder, lambda index: index["description"]["architecture"].update(image_blocks=2)),
        r"state: image\.blocks\.1\.attention_norm\.weight is missing",
    ),
    "no architecture": (
        lambda folder: edit_index(folder, lambda index: index["description"]["architecture"].update(image_heads=0)),
        r"weights\.json: no valid architecture and sizes: image_heads must be",
    ),
    "another dtype": (
        lambda folder: edit_index(folder, lambda index: index["tensors"]["logit_scale"].update(dtype="BF16")),
        FILE + r"logit_scale is F32 \[1\], but weights\.json says BF16 \[1\]",
    ),
}


NO_DAMAGE = ("another version", "another architecture", "more layers", "no architecture")  # as it was written


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(tmp_path: Path, name: str) -> None:
    folder, (damage, message) = tmp_path / "state", DAMAGES[name]
    save_model(make_model(), folder)
    Checkpoint(folder).verify()
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        Checkpoint(folder).verify()
    assert isinstance(caught.value, DamagedError) == (name not in NO_DAMAGE)


@pytest.mark.parametrize("method", ["read_text", "stat", "open"])
def test_a_failure_to_read_is_no_damage(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the index, and of a tensors' file before it is opened and as it is."""
    write(tmp_path / "state", some_tensors())
    original = getattr(Path, method)

    def fail(path: Path, *args: Any, **more: Any) -> Any:
        if method == "read_text" or path.suffix == ".safetensors":
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(path, *args, **more)

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(InputError, match="cannot be read: Stale file handle") as caught:
        Checkpoint(tmp_path / "state").verify()
    assert not isinstance(caught.value, DamagedError)


def test_a_file_that_is_cut_while_it_is_read_ends_in_an_error(tmp_path: Path) -> None:
    write(tmp_path / "state", {"a": torch.ones(2), "b": torch.ones(10_000)})
    checkpoint = Checkpoint(tmp_path / "state")
    checkpoint.read("a")
    os.truncate(tmp_path / "state" / "weights-00000-of-00001.safetensors", 4096)
    with pytest.raises(DamagedError, match=r"b cannot be read \(the file ends at byte 4096\)"):
        checkpoint.read("b")


def test_a_bf16_model_is_kept_in_fp32(tmp_path: Path) -> None:
    model = make_model().bfloat16()
    save_model(model, tmp_path / "state")
    assert Checkpoint(tmp_path / "state").read("logit_scale").dtype == torch.float32
    assert_same_weights(load_model(tmp_path / "state").bfloat16(), model)
