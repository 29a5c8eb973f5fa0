"""Nothing that a file holds is executed: the project's calls, found in its syntax trees, and the files it is given."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch.distributed as dist
import yaml

from growclip_ds import yaml_files
from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import Checkpoint, save_model
from growclip_ds.data import remote_stream
from growclip_ds.data.remote import SCHEMES
from growclip_ds.errors import InputError
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.yaml_files import parse_yaml
from tests.fed_gradients import Scenario, build, collect

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("growclip_ds", "kernels", "benchmarks", "docs", "slurm", "tests")

# By full name: modules, functions, and attributes of modules. Whatever lies below a name counts with it.
UNPICKLE = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg")
FORBIDDEN = (
    *UNPICKLE,
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub",
    "torch.package",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "yaml.Loader",
    "yaml.FullLoader",
    "yaml.UnsafeLoader",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "pty",
    "eval",
    "exec",
    "compile",
    "__import__",
    "shutil.unpack_archive",
    "torch.distributed.all_gather_object",
    "torch.distributed.gather_object",
    "torch.distributed.broadcast_object_list",
    "torch.distributed.scatter_object_list",
    "torch.distributed.send_object_list",
    "torch.distributed.recv_object_list",
    "webdataset.gopen",
    "webdataset.tariterators.tarfile_samples",
    "webdataset.WebDataset",
    "webdataset.WebLoader",
)
METHODS = ("extractall", "load_checkpoint", "save_checkpoint")  # of an archive; of a DeepSpeed engine
ARCHIVES = {"tarfile", "zipfile"}  # where these are imported, `.extract` too
PICKLED = "allow_pickle"  # an argument of numpy.load

OWN_RANKS = "between the processes of this run, which its launcher started; files and addresses do not get there"
LISTED = "a `pipe:` command is the shell's, as the user's own list has it; other addresses never reach a shell"
TESTS = "between a test and processes that it started, or a file that must not be unpickled"

# What is allowed, by file and finding, and why.
ALLOWED = {
    ("growclip_ds/distributed/collectives.py", "torch.distributed.all_gather_object"): OWN_RANKS,
    ("growclip_ds/distributed/collectives.py", "torch.distributed.broadcast_object_list"): OWN_RANKS,
    ("growclip_ds/yaml_files.py", "yaml.load"): "with a loader that is a SafeLoader, see below",
    ("growclip_ds/data/addresses.py", "webdataset.gopen"): LISTED,
    ("tests/data/test_shards.py", "webdataset.WebDataset"): "of a shard that the test wrote, not decoded",
    ("tests/data/scenes/test_write.py", "webdataset.WebDataset"): "of a shard that the test wrote, not decoded",
    ("tests/group.py", "pickle"): TESTS,
    ("tests/data/test_remote_stream.py", "pickle"): TESTS,
    ("tests/data/test_shards.py", "pickle"): TESTS,
    ("tests/data/test_tokens.py", "pickle"): TESTS,
    ("tests/test_safety.py", "pickle"): TESTS,
}


def sources() -> list[Path]:
    files = [ROOT / "train.py"]
    for folder in FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


def findings(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything forbidden in a module's source."""
    tree = ast.parse(source)
    names: dict[str, str] = {}  # what a local name stands for, by its imports
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
                yield from _forbidden(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield from _forbidden(node.lineno, f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from _forbidden(node.lineno, _full_name(node, names))
            if node.attr in METHODS or (node.attr == "extract" and ARCHIVES & set(names.values())):
                yield node.lineno, f".{node.attr}"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield from _forbidden(node.lineno, names.get(node.func.id, node.func.id))
            for keyword in node.keywords:
                said = not (isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None))
                if (keyword.arg in ("shell", PICKLED) and said) or (keyword.arg == "weights_only" and not said):
                    yield node.lineno, f"{keyword.arg}="


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _forbidden(line: int, name: str) -> Iterator[tuple[int, str]]:
    for forbidden in FORBIDDEN:
        if name == forbidden or name.startswith(forbidden + "."):
            yield line, forbidden


def test_the_project_unpickles_nothing_and_runs_no_shell():
    found = {}
    for file in sources():
        for line, name in findings(file.read_text(encoding="utf-8")):
            found.setdefault((str(file.relative_to(ROOT)), name), []).append(line)
    assert {key: lines for key, lines in found.items() if key not in ALLOWED} == {}
    assert found.keys() == ALLOWED.keys(), "what is no longer there need not be allowed"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads as parse", "pickle"),
        ("import _pickle as fast", "_pickle"),
        ("import torch\nstate = torch.load(path)", "torch.load"),
        ("import torch as t\nstate = t.load(path, weights_only=True)", "torch.load"),
        ("from torch import load\nload(path)", "torch.load"),
        ("import yaml\nyaml.load(text, Loader=yaml.FullLoader)", "yaml.load"),
        ("from yaml import UnsafeLoader", "yaml.UnsafeLoader"),
        ("import os\nos.system(f'rm {path}')", "os.system"),
        ("from os import system as run\nrun('ls')", "os.system"),
        ("import subprocess\nsubprocess.run(command, shell=True)", "shell="),
        ("import subprocess\nsubprocess.run(command, shell=flag)", "shell="),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "allow_pickle="),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("import tarfile\ntarfile.open(path).extractall()", ".extractall"),
        ("import tarfile\ntarfile.open(path).extract(member)", ".extract"),
        (
            "import torch.distributed as dist\ndist.all_gather_object(values, value)",
            "torch.distributed.all_gather_object",
        ),
        ("engine.load_checkpoint(folder)", ".load_checkpoint"),
    ],
)
def test_what_is_forbidden_is_found(source, name):
    assert name in [found for _, found in findings(source)]


def test_what_is_safe_is_not_found():
    source = """
import re, subprocess, yaml
from yaml import CSafeLoader
re.compile("x")
yaml.safe_load(text)
subprocess.run(["ls"], shell=False)
model.eval()
evaluate(model)
model.extract(architecture)
"""
    assert list(findings(source)) == []


def test_yaml_makes_no_objects(tmp_path):
    assert issubclass(yaml_files._Loader, yaml.SafeLoader)
    for text in ("!!python/object/apply:os.mkdir ['{}']", "!!python/name:os.mkdir", "!!python/module:os"):
        with pytest.raises(InputError, match="is not valid YAML"):
            parse_yaml(text.format(tmp_path / "made"), "config.yaml")
    assert not (tmp_path / "made").exists()


class Trap:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_in_place_of_weights_is_refused(tmp_path):
    save_model(GrowCLIP(Architecture(0, 1, 1, 1, 1, 0), 16, 8, 32, 16), tmp_path / "weights")
    (file,) = (tmp_path / "weights").glob("*.safetensors")
    trap = pickle.dumps(Trap(tmp_path / "made"))
    file.write_bytes(trap + bytes(file.stat().st_size - len(trap)))
    with pytest.raises(InputError, match="cannot be read"):
        Checkpoint(tmp_path / "weights").verify()
    assert not (tmp_path / "made").exists()
    pickle.loads(trap)
    assert (tmp_path / "made").exists()  # it would have worked


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "pipe"])
def test_no_address_reaches_a_shell(scheme, monkeypatch, tmp_path):
    """The address is one argument of the program that fetches it, whatever characters it has."""
    commands = []

    def popen(command, *arguments, shell=False, **keywords):
        commands.append((command, shell))
        raise FileNotFoundError(command)

    monkeypatch.setattr(importlib.import_module("webdataset.gopen"), "Popen", popen)
    monkeypatch.setattr(remote_stream, "PAUSE", 0.0)
    address = f"{scheme}://host/a';touch {tmp_path}/made;$(touch {tmp_path}/made)|'.tar"
    with pytest.raises(OSError, match="host"):
        list(remote_stream.stream_shard(address))
    assert bool(commands) == (not scheme.startswith("http"))  # those are fetched by Python
    assert all(not shell and isinstance(command, list) and address in command for command, shell in commands)


def life_of_an_engine(stage: int) -> list[str]:
    """What DeepSpeed does of all that unpickles files or runs a shell, while an engine is built, used and ended."""
    called: list[str] = []
    start = subprocess.Popen.__init__

    def watch(name: str):
        return lambda *arguments, **keywords: called.append(name)

    def start_program(self, command, *arguments, **keywords):  # such as numactl, on a CPU
        if keywords.get("shell"):
            called.append(f"a shell for {command}")
        start(self, command, *arguments, **keywords)

    with contextlib.ExitStack() as stack:
        for name in ("torch.load", "pickle.load", "pickle.loads", "yaml.load", "os.system", "os.popen"):
            stack.enter_context(patch(name, watch(name)))
        stack.enter_context(patch.object(subprocess.Popen, "__init__", start_program))
        scenario = Scenario(stage, dtype="bf16")
        engine = build(scenario)
        engine.backward(engine(scenario.gradients(0, dist.get_rank())))
        engine.step(0.1)
        collect(engine)
        engine.destroy()
    return called


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_reads_no_pickle_and_starts_no_shell_on_our_behalf(group, stage):
    assert group(2).run(life_of_an_engine, stage) == [[], []]
