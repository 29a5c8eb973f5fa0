"""A GPU's memory and peak speed, from a file of `configs/hardware/`. No torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from growclip_ds.config.deepspeed import Precision
from growclip_ds.config.errors import explain
from growclip_ds.config.sections import Section
from growclip_ds.errors import InputError
from growclip_ds.yaml_files import read_yaml

GIB = 2**30


class Peak(Section):
    """Dense TFLOP/s of the data sheet, by precision; null where the GPU has no fast way."""

    fp32: float = Field(gt=0, description="as PyTorch computes fp32 by default, without TF32")
    bf16: float | None = Field(gt=0, description="of the matrix units")
    fp16: float = Field(gt=0, description="of the matrix units")


class Hardware(Section):
    """A kind of GPU."""

    name: str = Field(min_length=1, description="of the GPU")
    memory_gib: float = Field(gt=0, description="that the driver shows, in GiB")
    peak_tflops: Peak = Field(description="dense TFLOP/s of the data sheet")
    memory_gb_per_s: float = Field(gt=0, description="bandwidth of its memory, in 10⁹ bytes a second")
    interconnect_gb_per_s: float = Field(
        gt=0, description="to the other GPUs of its machine, each way, in 10⁹ bytes a second"
    )

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * GIB

    def flops(self, precision: Precision) -> float:
        """Operations a second at most.

        Raises:
            InputError: the GPU has no matrix units for the precision.
        """
        tflops = getattr(self.peak_tflops, precision)
        if tflops is None:
            raise InputError(f"{self.name} has no {precision}; take fp16, as in ds_configs/fp16.json")
        return tflops * 1e12


def load_hardware(path: str | Path) -> Hardware:
    """Reads a file of `configs/hardware/`.

    Raises:
        InputError: there is none, or a key or value of it is not right.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must describe a GPU (`name: …`, `memory_gib: …`), but holds {values!r}")
    try:
        return Hardware.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, Hardware, values, str(path), [])) from None
