"""Whatever is wrong with a key, there is a line that says what is expected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from growclip_ds.config.config import Config, load_config
from growclip_ds.config.errors import section_of
from growclip_ds.errors import InputError

DATA = {
    "data": {"subsets": [{"name": "a", "shards": "b"}], "tokenizer": {"vocab_size": 300}},
    "evaluation": {"datasets": ["c"]},
}
TEXTS = (".shards", ".name", ".start", ".staged", ".dataset", "path", ".split")


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if inner := section_of(field):
            item = "0." if name in ("subsets", "datasets") else ""
            yield from keys(inner, f"{prefix}{name}.{item}")


@pytest.mark.parametrize("key", list(keys(Config)))
def test_a_value_of_the_wrong_type(key: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(DATA))
    wrong = "3.5j" if not key.endswith(TEXTS) else "7"
    if key == "data.subsets":
        wrong = "7"
    with pytest.raises(InputError, match=f"the command line: {key}(.\\w+)? .*expected "):
        load_config(tmp_path / "config.yaml", [f"{key}={wrong}"])


def test_keys_in_an_architecture_that_may_be_null(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(DATA))
    with pytest.raises(InputError, match=r"no key baselines\.architecture\.image_block; did you mean .*image_blocks\?"):
        load_config(tmp_path / "config.yaml", ["baselines.architecture={image_block: 3}"])
