"""A progress bar on the terminal while shards are indexed, counted or read, and sets evaluated."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from growclip_ds.distributed import is_main


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """Shows a progress bar and yields a function to call with the numbers done and to do; None if nobody would see it.

    The number to do may be None: not known.

    Rank 0 shows it on standard error, if that is a terminal, from the first call on.
    """
    if not is_main() or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
