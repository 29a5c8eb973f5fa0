"""Ranks that are processes of their own, each running a script."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(script: str, size: int = 2, **options: Any) -> list[subprocess.Popen[str]]:
    """Starts a rank after the other, in the environment that a launcher makes; `options` are Popen's."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    command = [sys.executable, "-c", script]
    return [subprocess.Popen(command, env=os.environ | shared | place, text=True, **options) for place in own]
