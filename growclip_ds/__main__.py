"""`growclip`, which is `python -m growclip_ds` too. Imports with care: that may be most of what a command takes."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line of this process; returns the exit code."""
    try:
        from growclip_ds.cli.program import main as run
    except KeyboardInterrupt:
        print("growclip: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
