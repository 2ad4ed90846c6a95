from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ssl_heads
from tests.report.browser import CHROMIUM, Browser, browser
from tests.report.pages import captions, embedding, images


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all that a page can have."""
    z, y = embedding()
    place = tmp_path_factory.mktemp("page") / "page.html"
    other = embedding(1)[0].flip(1)
    given = {"images": images(), "labels": y, "texts": captions(), "importance": z.mean(dim=0)}
    ssl_heads.report(z, place, other_seed=other, title="Animals", **given)
    return place


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome on this machine: apt-get install chromium")
    with browser() as page:
        yield page
