"""The checkpoint format: named tensors, independent of ranks, ZeRO stages and engines.

A checkpoint is a folder with one safetensors file per writing rank and the index `weights.json`, which lists the file
and checksum of each tensor and describes the model. It is used to resume, grow, evaluate and export; optimizer moments
are further tensors of the same checkpoint. Checkpoints are written and read one tensor at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from growclip_ds.architecture import Shape
from growclip_ds.checkpoint.model_weights import ModelWeights, digest_of, spec_of
from growclip_ds.checkpoint.weights_file import DTYPES, SafetensorsReader, checksum, tensor_bytes
from growclip_ds.checkpoint.writing import FORMAT, INDEX, VERSION, CheckpointWriting, index_checksum
from growclip_ds.distributed import rank, world_size
from growclip_ds.errors import InputError
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.spec import GrowCLIPSpec, ModelSpec

MOST_OPEN = 64  # files open at a time: a checkpoint has one per writing rank, and a process may open 1,024


class DamagedError(InputError):
    """The data on disk differ from what was written; raised on proof, not on a failure to read."""


def owners(shapes: Mapping[str, Shape], ranks: int) -> dict[str, int]:
    """The rank that writes each tensor: the largest first, to the least loaded rank; deterministic."""
    loads = [0] * ranks
    owner = {}
    for name, shape in sorted(shapes.items(), key=lambda item: (-math.prod(item[1]), item[0])):
        owner[name] = min(range(ranks), key=lambda candidate: (loads[candidate], candidate))
        loads[owner[name]] += math.prod(shape)
    return owner


def write_checkpoint(
    folder: Path | str,
    tensors: Iterable[tuple[str, Tensor | None]],
    shapes: Mapping[str, Shape],
    owner: Callable[[str], int],
    description: Mapping[str, Any],
) -> None:
    """Writes a checkpoint atomically. Collective.

    Files are written to a hidden folder next to `folder`, on a file system that all ranks share, synced to the disk and
    renamed. Leftovers of an interrupted write of the same folder are removed.

    Args:
        folder: folder of the new checkpoint; must not exist.
        tensors: every name once, with the full tensor on the rank that owns it; ignored on other ranks.
        shapes: shape of every tensor by name; all are fp32.
        owner: returns the rank that writes a tensor, as assigned by `owners`.
        description: describes the weights, as JSON; rank 0's is stored.

    Raises:
        InputError: on every rank, if the folder exists already, or some rank cannot write.
    """
    writing = CheckpointWriting(Path(folder), shapes, owner, description)
    writing.write(tensors)
    writing.publish()


class Checkpoint(ModelWeights):
    """A checkpoint opened for reading; tensors are read on demand.

    Attributes:
        folder: the checkpoint's folder.
        description: the description that it was written with.

    Raises:
        DamagedError: there is no checkpoint, its index is damaged, or a file is missing or has the wrong size.
        InputError: it cannot be read, its index is of an unknown version, or the weights do not match the architecture
            in the description.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self.description: dict[str, Any] = index["description"]
        self._tensors: dict[str, dict[str, Any]] = index["tensors"]
        self._open: dict[str, SafetensorsReader] = {}
        for name, size in index["files"].items():
            file = self.folder / name
            found = _size(file)
            if found != size:
                problem = "no such file" if found is None else f"{found} bytes instead of {size}"
                raise DamagedError(f"{file}: {problem}; the checkpoint is incomplete, copy it again or use another")
        try:
            self._spec = spec_of(self.description)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.folder / INDEX}: no valid architecture and sizes: {error}") from error
        if self._spec is not None:
            self._check_shapes(self._spec)

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the model's parameters."""
        return list(self._tensors)

    @property
    def spec(self) -> ModelSpec:
        """Specification of the model that these weights belong to.

        Raises:
            InputError: the description names no model.
        """
        if self._spec is None:
            raise InputError(
                f"{self.folder / INDEX}: the description has no architecture, so these are not a model's weights"
            )
        return self._spec

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> Shape:
        return tuple(self._entry(name)["shape"])

    def digest(self, names: Iterable[str]) -> str:
        """Digest of these tensors' names, dtypes, shapes and checksums, independent of the files that hold them."""
        entries = ((name, self._entry(name)) for name in names)
        return digest_of((name, entry["dtype"], entry["shape"], entry["crc32"]) for name, entry in entries)

    def read(self, name: str) -> Tensor:
        """A new copy of the tensor, on the CPU.

        Raises:
            DamagedError: the tensor is damaged.
            InputError: there is no such tensor, or it cannot be read.
        """
        entry = self._entry(name)
        file = self.folder / entry["file"]
        try:
            if entry["file"] not in self._open:
                if len(self._open) >= MOST_OPEN:
                    self._open.pop(next(iter(self._open))).close()
                self._open[entry["file"]] = SafetensorsReader(file)
            tensor = self._open[entry["file"]].read(name)
        except OSError as error:
            raise _unreadable(file, error) from error
        except ValueError as error:
            raise DamagedError(f"{file}: {name} cannot be read ({error}); copy the checkpoint again") from error
        if (DTYPES[tensor.dtype], list(tensor.shape)) != (entry["dtype"], entry["shape"]):
            found = f"{DTYPES[tensor.dtype]} {list(tensor.shape)}"
            raise DamagedError(f"{file}: {name} is {found}, but {INDEX} says {entry['dtype']} {entry['shape']}")
        if checksum(tensor_bytes(tensor)) != entry["crc32"]:
            raise DamagedError(f"{file}: {name} is damaged (its checksum differs); copy the checkpoint again")
        return tensor

    def close(self) -> None:
        """Closes the files, as open ones cannot be removed on NFS; a later read opens them again."""
        for reader in self._open.values():
            reader.close()
        self._open.clear()

    def verify(self) -> None:
        """Reads every tensor once. Raises the errors of `read`."""
        for name in self.names:
            self.read(name)

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._tensors:
            raise InputError(f"{self.folder}: the checkpoint has no tensor {name}")
        return self._tensors[name]

    def _check_shapes(self, spec: ModelSpec) -> None:
        for name, shape in spec.shapes.items():
            if name not in self or self.shape(name) != shape:
                found = f"has shape {self.shape(name)}" if name in self else "is missing"
                raise InputError(
                    f"{self.folder}: {name} {found}, but {spec.architecture} needs {shape}; "
                    "the weights do not belong to the model in their description"
                )


def save_model(model: GrowCLIP, folder: Path | str, **more: Any) -> None:
    """Writes a model that is replicated on all ranks, each of which writes a part. Collective.

    Args:
        model: the model, in any dtype; written as fp32.
        folder: folder of the new checkpoint; must not exist.
        more: further entries of the description.
    """
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    owner = owners(shapes, world_size())
    description = GrowCLIPSpec(model.architecture, model.sizes, model.end_of_text).describe() | more
    tensors = ((n, p.detach().float() if owner[n] == rank() else None) for n, p in parameters.items())
    write_checkpoint(folder, tensors, shapes, owner.__getitem__, description)


def load_model(folder: Path | str) -> nn.Module:
    """Loads the complete model of a checkpoint, a `GrowCLIP` or a `FixedCLIP`, in fp32 on the CPU."""
    return Checkpoint(folder).load()


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        kind, version = index["format"], index["version"]
        _ = index["description"], index["files"], index["tensors"]
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{folder}: no checkpoint there ({INDEX} is missing)") from None
    except OSError as error:
        raise _unreadable(file, error) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(
            f"{file}: damaged or not a checkpoint's index ({error!r}); copy the checkpoint again"
        ) from error
    if (kind, version) != (FORMAT, VERSION):  # before the checksum, which another version may compute differently
        raise InputError(
            f"{file}: format {kind!r} version {version!r}; this program reads {FORMAT!r} version {VERSION}"
        )
    if index_checksum(index) != index.get("crc32"):
        raise DamagedError(f"{file}: damaged (its checksum differs); copy the checkpoint again")
    return index


def _size(file: Path) -> int | None:
    """The file's size in bytes; None if there is no such file."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> InputError:
    """The error for a file that cannot be read, which is no proof of damage."""
    return InputError(f"{file} cannot be read: {error.strerror or error}; check its disk, then try again")
