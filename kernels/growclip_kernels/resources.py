"""Resource usage of every kernel: `python -m growclip_kernels.resources` prints registers, spills and shared memory.

Needs no GPU: Triton cross-compiles, and its ptxas reports the usage of the binary that a GPU would load. Fails if a
kernel spills registers, a program needs more shared or tensor memory than the device allows, or ptxas serializes wgmma.
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

REGISTERS = 65536  # per multiprocessor; allocated to warps in units of 256
TENSOR_MEMORY = 512  # columns per multiprocessor, where there is any (10.x)


class Limits(NamedTuple):
    """Limits of a device.

    Attributes:
        program: bytes of shared memory available to one program.
        multiprocessor: bytes of shared memory per multiprocessor; every resident program reserves 1 KiB on top of its
            own.
        warps: most resident warps per multiprocessor.
    """

    program: int
    multiprocessor: int
    warps: int


# Keyed by compute capability (CUDA C++ Programming Guide, table of technical specifications).
DEVICES = {
    (8, 0): Limits(163 << 10, 164 << 10, 64),
    (8, 9): Limits(99 << 10, 100 << 10, 48),
    (9, 0): Limits(227 << 10, 228 << 10, 64),
    (10, 0): Limits(227 << 10, 228 << 10, 64),
    (12, 0): Limits(99 << 10, 100 << 10, 48),
}


@dataclass(frozen=True)
class Resources:
    """Resource usage of a compiled kernel.

    Attributes:
        registers: registers per thread.
        spilled: bytes per thread that are spilled to local memory.
        shared: bytes of shared memory per program.
        tensor_memory: columns of tensor memory per program.
        programs: most programs that are resident on a multiprocessor at a time.
        matrix_instruction: matrix instructions of its products, such as "wgmma"; empty if there are none.
        serialized: whether ptxas makes every wgmma wait for the one before, so that nothing overlaps with them.
    """

    registers: int
    spilled: int
    shared: int
    tensor_memory: int
    programs: int
    matrix_instruction: str
    serialized: bool


def configurations(capability: tuple[int, int]) -> Iterator[Configuration]:
    """Every configuration that dispatch can choose on a device of this capability."""
    from growclip_kernels.contrastive.configurations import configurations as of_contrastive
    from growclip_kernels.optimizer.configurations import configurations as of_optimizer
    from growclip_kernels.packed_attention.configurations import configurations as of_attention

    yield from of_attention(capability)
    yield from of_contrastive(capability)
    yield from of_optimizer(capability)


def compile_for(configuration: Configuration, capability: tuple[int, int]) -> Resources:
    """Compiles a configuration as dispatch would on a device of this capability.

    Raises:
        RuntimeError: ptxas failed, or its report cannot be parsed.
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
    registers, spilled, serialized = _assemble(ptx, capability)
    shared, tensor_memory = compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", None) or 0
    instructions = [name for name in ("tcgen05.mma", "wgmma", "mma.sync") if re.search(rf"\b{re.escape(name)}", ptx)]
    return Resources(
        registers=registers,
        spilled=spilled,
        shared=shared,
        tensor_memory=tensor_memory,
        programs=_programs(registers, shared, tensor_memory, configuration.num_warps, capability),
        matrix_instruction=" + ".join(instructions),
        serialized=serialized,
    )


def defects(used: Resources, capability: tuple[int, int]) -> list[str]:
    """Describes spills, excessive shared and tensor memory, and serialized products; empty if there are none."""
    most = DEVICES[capability].program
    return [
        *([f"spills {used.spilled} bytes per thread"] if used.spilled else []),
        *([f"needs {used.shared} bytes of shared memory, of {most}"] if used.shared > most else []),
        *(
            [f"needs {used.tensor_memory} columns of tensor memory, of {TENSOR_MEMORY}"]
            if used.tensor_memory > TENSOR_MEMORY
            else []
        ),
        *(["serializes its wgmma instructions"] if used.serialized else []),
    ]


def _assemble(ptx: str, capability: tuple[int, int]) -> tuple[int, int, bool]:
    """Registers and spilled bytes per thread, as ptxas counts them, and whether it warns that it serializes wgmma."""
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
    return int(registers[1]), max(map(int, spills.groups())), "instructions are serialized" in log


def _programs(registers: int, shared: int, tensor_memory: int, warps: int, capability: tuple[int, int]) -> int:
    a_warp = -(-registers * 32 // 256) * 256
    device = DEVICES[capability]
    return min(
        REGISTERS // (a_warp * warps),
        device.multiprocessor // (shared + 1024),
        TENSOR_MEMORY // max(tensor_memory, 1),
        device.warps // warps,
        32,
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the table of resources; returns 1 if a configuration has a defect."""
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
                products = used.matrix_instruction + ", serialized" * used.serialized
                print(f"{item.name:44} {numbers}  {products}", flush=True)
                found += [f"{item.name} on {architecture} {defect}" for defect in defects(used, capability)]
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
