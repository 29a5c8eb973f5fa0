"""The commands in the documentation's fenced blocks: which there are, and running those that are marked to be run.

A block that begins with ```bash run (or ```python run) is run, in the order of the page, all blocks of a page in one
shell that begins in an empty folder; ```bash run quick are the blocks that make sense without the others and take
seconds.

    python docs/commands.py [--quick] PAGE...
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: as its fence names it, perhaps not at all.
        marks: words behind that: `run`, `quick`.
        text: what is in it, without its indentation.
    """

    language: str
    marks: tuple[str, ...]
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for indent, info, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        language, *marks = info.split() or [""]
        yield Block(language, tuple(marks), re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))


def command_lines(block: Block) -> Iterator[str]:
    """The lines of a block of commands, those that end in a backslash joined with the next; comments left out."""
    if block.language not in ("", "bash"):
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        if (line := re.sub(r"(^|\s)#.*", "", line).strip()) and not line.startswith("…"):
            yield line


def script(page: Path, quick: bool = False) -> str:
    """The blocks of a page that are to be run, as one shell script."""
    parts = ["set -euo pipefail"]
    for block in blocks(page):
        if "run" not in block.marks or (quick and "quick" not in block.marks):
            continue
        text = block.text if block.language == "bash" else f"python - << 'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n"
        parts.append(f"set -x\n{text}{{ set +x; }} 2> /dev/null")
    return "\n".join(parts)


def run(page: Path, folder: Path, quick: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a page's blocks in `folder`; what they print comes back in one stream, each command behind a `+`."""
    scripts = Path(sys.executable).parent  # as in an activated environment
    code = f"export PATH={str(scripts)!r}:$PATH\n{script(page, quick)}"
    return subprocess.run(
        ["bash", "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the commands of pages of the documentation.")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--quick", action="store_true", help="only the blocks that take seconds")
    options = parser.parse_args()
    for page in options.pages:
        with tempfile.TemporaryDirectory() as folder:
            result = run(page, Path(folder), options.quick)
        print(f"== {page}\n{result.stdout}", end="")
        if result.returncode:
            print(f"{page}: a command ended with exit code {result.returncode}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
