"""The checkpoint format: named tensors, independent of ranks, ZeRO stages and engines.

A checkpoint is a folder with one safetensors file per writing rank and `weights.json`, which gives the file and the
checksum of each tensor and describes the model. It serves resuming, growth, evaluation and export; a run's moments are
tensors of the same checkpoint under names of their own. It is written and read one tensor at a time.
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

MOST_OPEN = 64  # files of a checkpoint at a time: as many as ranks have written it, and a process may have 1,024


class DamagedError(InputError):
    """What is on the disk is not what was written: proof, not a failure to read it."""


def owners(shapes: Mapping[str, Shape], ranks: int) -> dict[str, int]:
    """Which rank writes each tensor: largest first to whoever has least, the same wherever it is computed."""
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
    """Writes a checkpoint that appears whole or not at all; all ranks call it together.

    Everything is written into a hidden folder beside `folder`, on a file system that the ranks share, brought to the
    disk and renamed. What an interrupted write of the same folder left behind is removed.

    Args:
        folder: of the new checkpoint; must not exist.
        tensors: every name once, with the whole tensor on the rank that owns it; elsewhere its value is ignored.
        shapes: of all tensors, which are fp32.
        owner: the rank that writes a tensor, as `owners` chooses them.
        description: what the weights are of, as JSON. Rank 0's is kept.

    Raises:
        InputError: on every rank, if the folder exists already, or cannot be written on some rank.
    """
    writing = CheckpointWriting(Path(folder), shapes, owner, description)
    writing.write(tensors)
    writing.publish()


class Checkpoint(ModelWeights):
    """A checkpoint opened for reading; tensors are read when asked for.

    Attributes:
        folder: where it is.
        description: as it was written.

    Raises:
        DamagedError: there is none, its index is damaged, or a file is missing or of another size.
        InputError: it cannot be read, its index is of an unknown version, or the weights are not those of the
            architecture that the description names.
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
        """The model whose weights these are, not built.

        Raises:
            InputError: they are of no model.
        """
        if self._spec is None:
            raise InputError(
                f"{self.folder / INDEX}: the description has no architecture; these are not a model's weights"
            )
        return self._spec

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> Shape:
        return tuple(self._entry(name)["shape"])

    def digest(self, names: Iterable[str]) -> str:
        """A digest of these tensors' names, types, shapes and checksums, whatever files they are in."""
        entries = ((name, self._entry(name)) for name in names)
        return digest_of((name, entry["dtype"], entry["shape"], entry["crc32"]) for name, entry in entries)

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, the caller's own.

        Raises:
            DamagedError: it is damaged.
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
        """Lets go of the files, which another read would open again: on NFS what is open cannot be removed."""
        for reader in self._open.values():
            reader.close()
        self._open.clear()

    def verify(self) -> None:
        """Reads every tensor once. Raises what `read` does."""
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
                    "the weights are of another model than their description"
                )


def save_model(model: GrowCLIP, folder: Path | str, **more: Any) -> None:
    """Writes a model that every rank holds whole; all ranks call it together, each writes its part.

    Args:
        model: in any dtype; fp32 is what is written.
        folder: of the new checkpoint.
        more: goes into the description.
    """
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    owner = owners(shapes, world_size())
    description = GrowCLIPSpec(model.architecture, model.sizes, model.end_of_text).describe() | more
    tensors = ((n, p.detach().float() if owner[n] == rank() else None) for n, p in parameters.items())
    write_checkpoint(folder, tensors, shapes, owner.__getitem__, description)


def load_model(folder: Path | str) -> nn.Module:
    """The model of a checkpoint, a `GrowCLIP` or a `FixedCLIP`, whole, in fp32 on the CPU."""
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
    if (kind, version) != (FORMAT, VERSION):  # before its checksum, which another version may compute otherwise
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
    """Says nothing about what was written."""
    return InputError(f"{file} cannot be read: {error.strerror or error}; check its disk, then try again")
