"""What dispatch can choose compiles for sm_80 and sm_90, without spills and within the device's shared memory.

In processes of their own: here the kernels are for the interpreter.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

SPILLING = """
from dataclasses import replace
from growclip_kernels import resources
from growclip_kernels.packed_attention.configurations import configurations

def too_much(capability):
    item = next(item for item in configurations(capability) if item.name == "attention backward to 256, bf16")
    yield replace(item, num_warps=4)

resources.configurations = too_much
raise SystemExit(resources.main(["--jobs", "1"]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_configuration_compiles_without_spills(capsys: pytest.CaptureFixture[str]):
    result = run("-m", "growclip_kernels.resources")
    with capsys.disabled():
        print("", result.stdout, sep="\n")
    assert result.returncode == 0, result.stderr
    counts = {name: int(count) for name, count in re.findall(r"(sm_\d+): (\d+) configurations", result.stdout)}
    assert counts.keys() == {"sm_80", "sm_90"}
    assert all(25 < count <= 40 for count in counts.values()), counts
    # On a Hopper GPU one program's exponentials are to pass while another multiplies.
    hopper = result.stdout.partition("sm_90")[2]
    for kernel in ("log-sum-exp", "softmax gradient"):
        for dtype in ("bf16", "fp16"):
            line = next(line for line in hopper.splitlines() if f"contrastive fused {kernel}, {dtype}" in line)
            assert line.split()[-2:] == ["2", "wgmma"], line


def test_a_spill_is_found():
    result = run("-c", SPILLING)
    assert result.returncode == 1
    assert re.search(r"attention backward to 256, bf16 on sm_90 spills \d+ bytes a thread", result.stderr)
