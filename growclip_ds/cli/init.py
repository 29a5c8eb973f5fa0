"""`growclip init`: create a project folder with a checkout's files outside its packages. Imports no torch."""

from __future__ import annotations

import argparse
import filecmp
import shutil
from pathlib import Path

from growclip_ds.errors import InputError

PROJECT = ("train.py", "configs", "ds_configs", "slurm")
_PACKAGE = Path(__file__).parents[1]


def add_init_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = (
        "Writes train.py, configs/, ds_configs/ and slurm/ into a folder from which to run everything. A checkout has "
        "them already. Existing files are not changed."
    )
    parser.epilog = (
        "Example:\n\n"
        "  growclip init my-project"
    )  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder; created if it does not exist")
    parser.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> int:
    root = _project_files()
    written = kept = 0
    differing: list[Path] = []
    try:
        for source in sorted(_files(root)):
            target = options.folder / source.relative_to(root)
            if target.exists():
                kept += 1
                if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
                    differing.append(target)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            written += 1
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written ({error.strerror}); name another folder") from None
    print(f"{options.folder}: {written} files written, {kept} were there")
    if differing:
        print("Kept as they were, other than this version's (move one away and call this again to get this version's):")
        print("\n".join(f"  {path}" for path in differing))
    return 0


def _project_files() -> Path:
    """The folder of the project's files: in the installed package, or the checkout that contains it."""
    return next(root for root in (_PACKAGE / "project", _PACKAGE.parent) if (root / "train.py").exists())


def _files(root: Path) -> list[Path]:
    """The files to write; from a checkout, only those that the wheel contains."""
    there = [path for name in PROJECT for path in (root / name, *(root / name).rglob("*")) if path.is_file()]
    return [path for path in there if path.suffix in (".py", ".yaml", ".json", ".sh") and path.name != "site.sh"]
