"""Named seeds: the same on every rank and after a resume, whatever else is drawn."""

from __future__ import annotations

import hashlib


def named_seed(*names: object) -> int:
    """A seed below 2^63, determined by the names, such as (run seed, growth step, phase, tensor name)."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
