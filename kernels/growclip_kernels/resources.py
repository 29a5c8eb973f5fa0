"""Resource usage of every kernel: `python -m growclip_kernels.resources` prints registers, spills and shared memory.

Needs no GPU: Triton compiles for any, and its ptxas reports what the device will load. Fails where registers are
spilled or a program wants more shared memory than it can have.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from growclip_kernels.configuration import Configuration

REGISTERS = 65536  # of a multiprocessor; a warp takes them in units of 256


class Limits(NamedTuple):
    """Of a device.

    Attributes:
        program: bytes of shared memory a program can have.
        multiprocessor: bytes of shared memory a multiprocessor has, of which each program takes 1 KiB more.
        warps: of a multiprocessor.
    """

    program: int
    multiprocessor: int
    warps: int


# By compute capability (CUDA C++ Programming Guide, table of technical specifications).
DEVICES = {
    (8, 0): Limits(163 << 10, 164 << 10, 64),
    (8, 9): Limits(99 << 10, 100 << 10, 48),
    (9, 0): Limits(227 << 10, 228 << 10, 64),
    (10, 0): Limits(227 << 10, 228 << 10, 64),
    (12, 0): Limits(99 << 10, 100 << 10, 48),
}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        registers: a thread.
        spilled: bytes a thread stores to local memory and loads again.
        shared: bytes of shared memory a program.
        programs: how many a multiprocessor runs at a time.
        matrix_instruction: what its products are made with.
    """

    registers: int
    spilled: int
    shared: int
    programs: int
    matrix_instruction: str


def configurations(capability: tuple[int, int]) -> Iterator[Configuration]:
    """Everything that dispatch can choose on a device of this capability."""
    from growclip_kernels.contrastive.configurations import configurations as of_contrastive
    from growclip_kernels.optimizer.configurations import configurations as of_optimizer
    from growclip_kernels.packed_attention.configurations import configurations as of_attention

    yield from of_attention(capability)
    yield from of_contrastive(capability)
    yield from of_optimizer(capability)


def compile_for(configuration: Configuration, capability: tuple[int, int]) -> Resources:
    """Compiles as dispatch would on such a device.

    Raises:
        RuntimeError: ptxas refused, or what it reports cannot be read.
    """
    kernel = configuration.kernel
    divisible = [
        (index,)
        for index, name in enumerate(kernel.arg_names)
        if name in configuration.divisible or configuration.signature.get(name, "").startswith("*")
    ]
    source = ASTSource(
        fn=kernel,
        signature={**configuration.signature, **dict.fromkeys(configuration.constexprs, "constexpr")},
        constexprs=dict(configuration.constexprs),
        attrs={index: [["tt.divisibility", 16]] for index in divisible},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability[0] * 10 + capability[1], 32),
        options={"num_warps": configuration.num_warps, "num_stages": configuration.num_stages},
    )
    ptx = compiled.asm["ptx"]
    registers, spilled = _assemble(ptx, capability)
    instructions = [name for name in ("tcgen05.mma", "wgmma", "mma.sync") if re.search(rf"\b{re.escape(name)}", ptx)]
    return Resources(
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        programs=_programs(registers, compiled.metadata.shared, configuration.num_warps, capability),
        matrix_instruction=" + ".join(instructions),
    )


def defects(used: Resources, capability: tuple[int, int]) -> list[str]:
    """What must not be, in words."""
    most = DEVICES[capability].program
    return [
        *([f"spills {used.spilled} bytes a thread"] if used.spilled else []),
        *([f"wants {used.shared} bytes of shared memory, of {most}"] if used.shared > most else []),
    ]


def _assemble(ptx: str, capability: tuple[int, int]) -> tuple[int, int]:
    """Registers a thread and bytes spilled, as ptxas counts them."""
    assembler = get_ptxas(capability[0] * 10 + capability[1]).path
    target = re.search(r"\.target (sm_\w+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [assembler, "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        log = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise RuntimeError(f"ptxas for {capability}: {log.strip()}")
    return int(registers[1]), max(map(int, spills.groups()))


def _programs(registers: int, shared: int, warps: int, capability: tuple[int, int]) -> int:
    a_warp = -(-registers * 32 // 256) * 256
    device = DEVICES[capability]
    return min(REGISTERS // (a_warp * warps), device.multiprocessor // (shared + 1024), device.warps // warps, 32)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns 1 if there are defects."""
    parser = argparse.ArgumentParser(prog="python -m growclip_kernels.resources", description=__doc__)
    parser.add_argument("--match", default="", metavar="TEXT", help="only configurations with this in their name")
    parser.add_argument(
        "--devices",
        nargs="+",
        type=lambda text: tuple(map(int, text.split("."))),
        default=list(DEVICES),
        choices=list(DEVICES),
        metavar="N.N",
        help="compute capabilities to compile for (default: all of 8.0 8.9 9.0 10.0 12.0)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time")
    options = parser.parse_args(arguments)
    found = []
    for capability in options.devices:
        chosen = [item for item in configurations(capability) if options.match in item.name]
        architecture = f"sm_{capability[0]}{capability[1]}"
        print(f"{architecture}: {len(chosen)} configurations")
        print(f"{'':44} warps  registers  spilled  shared  programs  products")
        with ThreadPoolExecutor(options.jobs) as pool:
            for item, used in zip(chosen, pool.map(lambda i, c=capability: compile_for(i, c), chosen), strict=True):
                numbers = f"{item.num_warps:5} {used.registers:10} {used.spilled:8} {used.shared:7} {used.programs:9}"
                print(f"{item.name:44} {numbers}  {used.matrix_instruction}", flush=True)
                found += [f"{item.name} on {architecture} {defect}" for defect in defects(used, capability)]
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
