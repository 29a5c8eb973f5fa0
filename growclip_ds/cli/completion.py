"""`growclip completion`: print a script for shell completion. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

_FOLDERS = ("DIR", "OUT", "RUN")  # metavars of arguments that are folders; other paths may also be files
_FILES = ("FILE", "LIST", "MODEL", "SHARDS", "DATA", "SET")


def add_completion_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = "Prints a script with which your shell completes growclip's commands, options and files."
    parser.epilog = (
        "For bash with the bash-completion package, and for zsh with the folder in $fpath:\n\n"
        "  growclip completion bash > ~/.local/share/bash-completion/completions/growclip\n"
        "  growclip completion zsh > ~/.zfunc/_growclip"
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")
    parser.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    from growclip_ds.cli.program import make_parser

    parser = make_parser()
    for action in _actions(parser):
        if action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in _FILES or action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yields the arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in dict.fromkeys(action.choices.values()):
                yield from _actions(inner)
