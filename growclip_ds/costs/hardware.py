"""The memory and peak throughput of a GPU, read from a file in `configs/hardware/`. No torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from growclip_ds.config.deepspeed import Precision
from growclip_ds.config.errors import explain
from growclip_ds.config.sections import Section
from growclip_ds.errors import InputError
from growclip_ds.yaml_files import read_yaml

GIB = 2**30
_FORMER = ("memory_gb_per_s", "interconnect_gb_per_s")  # keys of older files, which nothing reads


class Peak(Section):
    """Dense TFLOP/s from the data sheet, by precision; null where the GPU has no matrix units for it."""

    fp32: float = Field(gt=0, description="peak in fp32, without TF32, as PyTorch computes by default")
    bf16: float | None = Field(gt=0, description="peak of the matrix units in bf16")
    fp16: float = Field(gt=0, description="peak of the matrix units in fp16")


class Hardware(Section):
    """A GPU model."""

    name: str = Field(min_length=1, description="name of the GPU")
    memory_gib: float = Field(gt=0, description="memory that the driver shows, in GiB")
    peak_tflops: Peak = Field(description="dense TFLOP/s from the data sheet")

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * GIB

    def flops(self, precision: Precision) -> float:
        """Peak FLOP/s in a precision.

        Raises:
            InputError: the GPU has no matrix units for the precision.
        """
        tflops = getattr(self.peak_tflops, precision)
        if tflops is None:
            raise InputError(f"{self.name} has no {precision}; use fp16, as in ds_configs/fp16.json")
        return tflops * 1e12


def load_hardware(path: str | Path) -> Hardware:
    """Reads a file in the format of `configs/hardware/`.

    Raises:
        InputError: the file does not exist, or a key or value in it is invalid.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must describe a GPU (`name: …`, `memory_gib: …`), but holds {values!r}")
    values = {key: value for key, value in values.items() if key not in _FORMER}
    try:
        return Hardware.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, Hardware, values, str(path), [])) from None
