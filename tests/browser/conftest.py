"""Fixtures of the tests that need a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.board import PROGRAMS, find_chromium, open_browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    program = find_chromium()
    if program is None:
        pytest.skip(f"Chromium is not installed (none of {', '.join(PROGRAMS)}): see .ci/run")
    with open_browser(program) as browser:
        yield browser
