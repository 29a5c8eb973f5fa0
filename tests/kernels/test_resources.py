"""What dispatch can choose compiles for each kind of device, without spills and within its shared memory.

In processes of their own: here the kernels are for the interpreter.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import triton

from growclip_kernels import resources

TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
# docs/performance.md says how much, and what differs from 3.8 on.
SPILLING = ((3, 6), (3, 8), (3, 9))

DEFECTIVE = """
from dataclasses import replace
from growclip_kernels import resources

def defective(capability, of=resources.configurations):
    items = {item.name: item for item in of(capability)}
    yield replace(items["attention backward to 256, bf16"], num_warps=4)
    small = items["attention backward to 64, bf16"]
    yield replace(small, constexprs={**small.constexprs, "TRANSPOSED": False}, num_warps=8)

resources.configurations = defective
raise SystemExit(resources.main(["--devices", "9.0"]))
"""


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(compiling: dict[str, str]) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=compiling, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def table(run: Run) -> subprocess.CompletedProcess[str]:
    return run("-m", "growclip_kernels.resources", "--devices", "8.0", "9.0")


def defects(table: subprocess.CompletedProcess[str]) -> list[tuple[str, str, str]]:
    """A kernel, an architecture and what is wrong, each; nothing else may have ended the program."""
    found = re.findall(r"^(.+) on (sm_\d+) (spills|needs|serializes) ", table.stderr, re.MULTILINE)
    assert table.returncode == bool(found), table.stderr
    return found


def test_every_configuration_compiles(table: subprocess.CompletedProcess[str], capsys: pytest.CaptureFixture[str]):
    with capsys.disabled():
        print("", table.stdout, sep="\n")
    assert [defect for defect in defects(table) if "spills" not in defect] == []
    counts = {name: int(count) for name, count in re.findall(r"(sm_\d+): (\d+) configurations", table.stdout)}
    assert counts.keys() == {"sm_80", "sm_90"}
    assert all(25 < count <= 40 for count in counts.values()), counts
    # On a Hopper GPU one program's exponentials are to pass while another multiplies.
    hopper = table.stdout.partition("sm_90")[2]
    for kernel, paired in (("log-sum-exp", TRITON < (3, 8)), ("softmax gradient", TRITON == (3, 7))):
        for dtype in ("bf16", "fp16"):
            line = next(line for line in hopper.splitlines() if f"contrastive fused {kernel}, {dtype}" in line)
            assert line.split()[-2:] == ["2" if paired else "1", "wgmma"], line


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nothing_is_spilled(table: subprocess.CompletedProcess[str], architecture: str):
    if architecture == "sm_80" and TRITON in SPILLING:
        pytest.skip(f"Triton {triton.__version__} spills a few bytes on sm_80 (docs/performance.md)")
    assert [defect for defect in defects(table) if defect[1:] == (architecture, "spills")] == []


@pytest.mark.slow
def test_other_devices(run: Run):
    """Desktop and inference cards, which take the tiles for little shared memory, and Blackwell."""
    table = run("-m", "growclip_kernels.resources", "--devices", "8.9", "10.0", "12.0")
    found = [defect for defect in defects(table) if defect[2] != "spills" or TRITON not in SPILLING]
    assert found == [], table.stdout
    counts = dict(re.findall(r"(sm_\d+): (\d+) configurations", table.stdout))
    assert counts == {"sm_89": "34", "sm_100": "38", "sm_120": "34"}


def test_defects_are_found(run: Run):
    result = run("-c", DEFECTIVE)
    assert result.returncode == 1
    assert re.search(r"attention backward to 256, bf16 on sm_90 spills \d+ bytes per thread", result.stderr)
    assert "attention backward to 64, bf16 on sm_90 serializes its wgmma instructions" in result.stderr
    assert ", serialized\n" in result.stdout


def test_tensor_memory_limits_programs():
    most, capability = resources.TENSOR_MEMORY, (10, 0)
    for columns, programs in ((0, 4), (most // 2, 2), (most, 1)):
        assert resources._programs(64, 16 << 10, columns, 8, capability) == programs
    used = resources.Resources(64, 0, 16 << 10, most, 1, "tcgen05.mma", serialized=False)
    assert resources.defects(used, capability) == []
    (found,) = resources.defects(replace(used, tensor_memory=2 * most), capability)
    assert "1024 columns of tensor memory" in found
