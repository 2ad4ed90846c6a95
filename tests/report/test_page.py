"""The page in headless Chromium: every answer equals NumPy's, the keyboard suffices, and nothing is requested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssl_heads
from tests.report.browser import Browser
from tests.report.pages import ANIMALS, SCALE, D, N, contents, decoded, embedding, neighbours

LISTED = "[...document.querySelectorAll('#list tbody tr')].map((row) => Number(row.dataset.d))"


@pytest.fixture
def page(chromium: Browser, path: Path) -> Browser:
    chromium.size(1440, 900)
    chromium.media()
    chromium.open(path)
    chromium.run("localStorage.clear()")
    chromium.open(path)
    return chromium


def quiet(page: Browser, path: Path) -> None:
    """No message, and no request but the file and its own blobs."""
    assert page.errors == []
    assert {url.partition("#")[0] for url in page.requests if not url.startswith("blob:")} == {path.resolve().as_uri()}


# -------------------------------------------------------------------------------------------------------- the table
KEYS = {
    "support": lambda found: found["support"],
    "share": lambda found: found["share"] - found["chance"],
    "expected_activation": lambda found: found["expected_activation"],
    "selectivity": lambda found: found["selectivity"],
    "importance": lambda found: found["importance"],
    "twin": lambda found: np.abs(found["twin_correlation"]),
    "dimension": lambda found: -np.arange(D),
}


@pytest.mark.parametrize("key", KEYS)
def test_sorting_equals_numpy(key: str, page: Browser, path: Path) -> None:
    value = KEYS[key](contents(path)).astype(float)
    page.run("document.querySelector('#filter').value = 'all'")
    page.run(f"document.querySelector('th[data-key={key}] button').click()")
    if key == "expected_activation":  # the page begins with this order, so the click turned it round
        page.run(f"document.querySelector('th[data-key={key}] button').click()")
    assert page.run(LISTED) == np.argsort(-np.nan_to_num(value, nan=-np.inf), kind="stable").tolist()
    page.run(f"document.querySelector('th[data-key={key}] button').click()")
    assert page.run(LISTED) == np.argsort(np.nan_to_num(value, nan=np.inf), kind="stable").tolist()
    assert page.run(f"document.querySelector('th[data-key={key}]').ariaSort") in ("ascending", "descending")
    quiet(page, path)


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [("all", set(range(D))), ("alive", set(range(D)) - {3}), ("flagged", {3, 4, 5}), ("named", set()), ("kept", set())],
)
def test_filters(filter_: str, expected: set[int], page: Browser) -> None:
    page.run(f"$ = document.querySelector('#filter'), $.value = '{filter_}', $.dispatchEvent(new Event('change'))")
    assert set(page.run(LISTED)) == expected
    assert page.run("document.querySelector('#shown').value") == f"{len(expected)} of {D}"


@pytest.mark.parametrize("query", ["dog", "7", "#7", "OWL", "nothing"])
def test_search(query: str, page: Browser, path: Path) -> None:
    found = contents(path)
    page.key("/")
    page.type(query)
    words, modal = found["meta"]["words"], found["modal_class"]
    names = [found["meta"]["class_names"][c] if c >= 0 else "" for c in modal]
    fits = [query.lower() in [names[j], *words[j]] or query.strip("#") == str(j) for j in range(D)]
    assert set(page.run(LISTED)) == {j for j in range(D) if fits[j] and not found["dead"][j]}


# ------------------------------------------------------------------------------------------------------ the details
def shown(page: Browser, heading: str) -> list[int]:
    """The samples of the tiles that follow a heading."""
    numbers: list[int] = page.run(
        f"""(() => {{
          const found = [...document.querySelectorAll('#detail h3')].find((h) => h.textContent.startsWith('{heading}'));
          return [...found.nextElementSibling.querySelectorAll('[data-s]')].map((tile) => Number(tile.dataset.s));
        }})()"""
    )
    return numbers


@pytest.mark.parametrize("j", range(D))
def test_a_deep_link_shows_the_dimension(j: int, page: Browser, path: Path) -> None:
    page.open(path, f"#d={j}")
    found = contents(path)
    assert page.run("document.querySelector('#detail h2').textContent") == f"Dimension {j}"
    for heading, name in (("Strongest", "strongest"), ("Evenly", "spread"), ("Near misses", "near_misses")):
        expected = found[name].reshape(D, -1)[j]
        if (expected >= 0).any():
            assert shown(page, heading) == expected[expected >= 0].tolist()
    text = page.run("document.querySelector('#detail').innerText")
    assert ("fires on no sample" in text) == bool(found["dead"][j])
    assert ("always on" in text) == bool(found["always_on"][j])
    if not found["dead"][j]:
        assert f"Fires on {found['support'][j]} of {N} samples" in text
        assert f"dimension {found['twin'][j]} there correlates {found['twin_correlation'][j]:.2f}" in text
    quiet(page, path)


@pytest.mark.parametrize("i", [0, 1, 17, N - 1])
def test_neighbours_parts_and_what_if_equal_numpy(i: int, page: Browser, path: Path) -> None:
    dense = decoded(contents(path))
    page.open(path, f"#s={i}")
    order, cosines = neighbours(dense, i, 12)
    assert shown(page, "Nearest samples") == order
    answer = page.run(f"report.codes.neighbours({i}, 12)")
    assert [a["cosine"] for a in answer] == pytest.approx(cosines, abs=1e-15)
    parts = page.run(f"report.codes.parts({i})")
    assert {p["dimension"]: p["value"] * SCALE for p in parts} == pytest.approx(
        {j: v for j, v in enumerate(dense[i]) if v}
    )
    assert sum(p["share"] for p in parts) == pytest.approx(1)
    off = (int(dense[i].argmax()), 4)
    page.go(f"#s={i}&off={off[0]},{off[1]}")
    changed, _ = neighbours(dense, i, 12, off)
    assert page.run("[...document.querySelectorAll('#without [data-s]')].map((t) => Number(t.dataset.s))") == changed
    assert page.run("[...document.querySelectorAll('#with [data-s]')].map((t) => Number(t.dataset.s))") == order
    new = page.run("[...document.querySelectorAll('#without .cap')].map((cap) => cap.textContent.startsWith('new'))")
    assert new == [k not in order for k in changed]
    quiet(page, path)


def test_neighbours_of_the_page_are_those_of_the_embedding(page: Browser) -> None:
    q = torch.nn.functional.normalize(embedding()[0].double())
    for i in range(0, N, 40):
        answer = page.run(f"report.codes.neighbours({i}, 12)")
        cosine = q @ q[i]
        cosine[i] = -1
        assert [a["cosine"] for a in answer] == pytest.approx(cosine.topk(12).values.tolist(), abs=2e-4)


@pytest.mark.parametrize(("i", "k"), [(0, 3), (5, 100), (1, 2)])
def test_why_is_the_product_of_each_dimension(i: int, k: int, page: Browser, path: Path) -> None:
    dense = decoded(contents(path))
    page.open(path, f"#s={i}&t={k}")
    product = dense[i] * dense[k] / np.sqrt((dense[i] @ dense[i]) * (dense[k] @ dense[k]))
    answer = page.run(f"report.codes.why({i}, {k})")
    assert {t["dimension"]: t["product"] for t in answer["terms"]} == pytest.approx(
        {j: p for j, p in enumerate(product) if p}
    )
    assert answer["cosine"] == pytest.approx(product.sum())
    text = page.run("document.querySelector('#detail').innerText")
    assert f"Their similarity is {product.sum():.2f}" in text
    assert f"{product.max():.3f}" in text
    quiet(page, path)


def test_rows_show_pictures_and_open(page: Browser) -> None:
    assert page.run("document.querySelectorAll('#list tbody tr .pic').length") > 8 * (D - 2)
    row = page.run("document.querySelector('#list tbody tr[data-d=\"1\"]').innerText")
    assert "dog" in row
    assert "100%" in row


def test_the_page_opens_what_is_clicked(page: Browser) -> None:
    page.run("document.querySelector('#list tbody tr .id').click()")
    page.wait("document.querySelector('#detail h2').textContent.startsWith('Dimension')")
    page.run("document.querySelector('#detail [data-s]').click()")
    page.wait("document.querySelector('#detail h2').textContent.startsWith('Sample')")
    page.run("[...document.querySelectorAll('#detail [data-s]')].at(-1).click()")
    page.wait("document.querySelector('#detail h2').textContent.startsWith('Why')")


# ------------------------------------------------------------------------------------------------------ the keyboard
def test_the_keyboard_alone_names_keeps_and_exports(page: Browser, path: Path) -> None:
    page.key("j")
    page.key("j")
    page.key("k")
    first = page.run("Number(document.activeElement.closest('tr').dataset.d)")
    assert first == page.run(LISTED)[0]
    page.key("Enter")
    page.wait(f"document.querySelector('#detail h2').textContent === 'Dimension {first}'")
    page.key("n")
    page.type("whiskers")
    page.key("Escape")
    assert page.run("document.activeElement.classList.contains('id')")
    page.key("+")
    page.key("j")
    page.key("Enter")
    second = page.run(LISTED)[1]
    page.wait(f"document.querySelector('#detail h2').textContent === 'Dimension {second}'")
    page.key("-")
    page.key("o")
    page.wait(f"report.address().off.has({second})")
    page.key("?")
    assert page.run("document.querySelector('#keys').open")
    page.key("Escape")
    assert not page.run("document.querySelector('#keys').open")
    exported = page.run("report.exported()")
    assert exported["dimensions"] == sorted(
        [{"dimension": first, "name": "whiskers", "verdict": "keep"}, {"dimension": second, "verdict": "drop"}],
        key=lambda c: c["dimension"],
    )
    kept = ssl_heads.select(embedding()[0], json.loads(json.dumps(exported)))
    assert (kept.dimensions.tolist(), kept.names) == ([first], ("whiskers",))
    page.open(path, f"#d={first}")
    assert page.run("document.querySelector('#name').value") == "whiskers"
    quiet(page, path)


def test_every_control_is_reached_by_the_tab_key_and_has_a_name(page: Browser) -> None:
    page.go("#d=0")
    unnamed = page.run(
        """[...document.querySelectorAll('a, button, input:not([hidden]), select, textarea, summary')].filter((e) =>
          !(e.textContent.trim() || e.ariaLabel || e.title || e.labels?.length)).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    seen = set()
    for _ in range(120):
        page.key("Tab")
        seen.add(
            page.run("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        )
    assert {"search", "filter", "export", "id", "name", "tile", "note"} <= {word for s in seen for word in s.split()}


def test_names_are_imported_and_those_of_another_width_are_not(page: Browser) -> None:
    page.run("report.imported({width: 10, dimensions: [{dimension: 2, name: 'ears', note: 'both'}]})")
    assert page.run("report.exported().dimensions") == [{"dimension": 2, "name": "ears", "note": "both"}]
    refused = page.run(
        "(() => { try { report.imported({width: 9, dimensions: []}); } catch (e) { return e.message; } })()"
    )
    assert refused == "This file is of 9 dimensions, the page of 10."


# ------------------------------------------------------------------------------------------------ where it is looked at
def colour(page: Browser) -> list[int]:
    text = page.run("getComputedStyle(document.body).backgroundColor")
    return [int(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def test_dark_print_narrow_and_still(page: Browser, path: Path) -> None:
    page.media(prefers_color_scheme="dark")
    assert max(colour(page)) < 60
    page.media(prefers_color_scheme="light")
    assert min(colour(page)) > 200
    page.media("print")
    assert page.run("getComputedStyle(document.querySelector('#tools')).display") == "none"
    page.media(prefers_reduced_motion="reduce")
    page.go("#d=0")
    assert page.run("getComputedStyle(document.querySelector('.meter i')).transitionDuration") == "0s"
    page.media()
    page.size(420, 800)
    assert page.run("document.documentElement.scrollWidth") <= 420
    assert page.pdf().startswith(b"%PDF")
    quiet(page, path)


def test_without_fresh_functions_of_the_browser(chromium: Browser, path: Path) -> None:
    old = chromium.send("Page.addScriptToEvaluateOnNewDocument", source="delete Uint8Array.fromBase64")
    chromium.open(path, "#d=0")
    assert shown(chromium, "Strongest")
    chromium.send("Page.removeScriptToEvaluateOnNewDocument", identifier=old["identifier"])
    quiet(chromium, path)


@pytest.mark.parametrize("kind", ["dead", "three", "texts", "signed"])
def test_odd_data_open(kind: str, chromium: Browser, tmp_path: Path) -> None:
    data = {
        "dead": torch.zeros(6, 4),
        "three": torch.rand(3, 4),
        "texts": torch.rand(50, 4),
        "signed": torch.randn(50, 4),
    }
    z = data[kind]
    labels, texts = [ANIMALS[i % 3] for i in range(len(z))], [f"text {i}" for i in range(len(z))]
    given: dict[str, Any] = {"texts": texts} if kind == "texts" else {"labels": labels}
    ssl_heads.report(z, tmp_path / "page.html", **given)
    for fragment in ("", "#d=1", "#s=0", "#s=0&t=1", "#s=0&off=0,1,2,3", "#d=99999", "#nonsense"):
        chromium.open(tmp_path / "page.html", fragment)
        assert "NaN" not in chromium.run("document.body.innerText")
        quiet(chromium, tmp_path / "page.html")


REPORTS = sorted((Path(__file__).parents[2] / "docs" / "reports").glob("*.html"))


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.stem)
def test_the_pages_of_the_documentation_open(report: Path, chromium: Browser) -> None:
    assert report.stat().st_size < 5e6
    chromium.size(1440, 900)
    chromium.media()
    for fragment in ("", "#d=3", "#s=5", "#s=5&t=6&off=3"):
        chromium.open(report, fragment)
        assert chromium.run("document.querySelectorAll('#list tbody .pic').length") >= 8 * 10
        quiet(chromium, report)


def test_the_documentation_has_its_four_pages() -> None:
    assert [report.stem for report in REPORTS] == ["digits_bayes", "digits_ncl", "digits_simclr", "digits_tricl"]
