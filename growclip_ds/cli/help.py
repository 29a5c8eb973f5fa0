"""The argument parser and help formatter of all commands, and arguments that several have."""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
import textwrap
from typing import Any


class Help(argparse.HelpFormatter):
    """Wraps paragraphs, keeps indented lines as they are, and shows defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(100, shutil.get_terminal_size().columns))

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):  # its commands are indented one level deeper
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [
            paragraph if paragraph.startswith("  ") else textwrap.fill(paragraph, width)
            for paragraph in text.strip("\n").split("\n\n")
        ]
        return textwrap.indent("\n\n".join(paragraphs), indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, value = action.help, action.default
        if not text or "default" in text or not action.option_strings or isinstance(value, bool):
            return text
        return text if value in (None, [], argparse.SUPPRESS) else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser with `Help` and without abbreviated options; subcommands' parsers are of this class too."""

    def __init__(self, *, formatter_class: Any = Help, allow_abbrev: bool = False, **options: Any) -> None:
        super().__init__(formatter_class=formatter_class, allow_abbrev=allow_abbrev, **options)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Writes the message, raising an error if that fails, which argparse would ignore."""
        (file or sys.stderr).write(message)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds the settings that override those of a configuration, which `load_config` takes."""
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings to override, as YAML values"
    )


class Version(argparse.Action):
    """Prints the installed version and exits."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print("growclip-ds", importlib.metadata.version("growclip-ds"))
        parser.exit()
