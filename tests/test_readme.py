"""The figures of the README and the pages are those of the committed results."""

import pytest

from benchmarks.readme import BLOCK, PAGES, README, fill

NAMES = [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_blocks_are_what_the_results_give(page):
    assert fill(page) == page.read_text(encoding="utf-8"), "run `python -m benchmarks.readme`"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_maker_has_its_block_and_every_block_its_maker(page):
    text = page.read_text(encoding="utf-8")
    assert sorted(match[2] for match in BLOCK.finditer(text)) == sorted(PAGES[page])


def test_a_figure_typed_by_hand_is_found(tmp_path, monkeypatch):
    text = README.read_text(encoding="utf-8")
    typed = tmp_path / "README.md"
    typed.write_text(text.replace("Ratio, median", "Ratio, about"), encoding="utf-8")
    monkeypatch.setitem(PAGES, typed, PAGES[README])
    assert fill(typed) == text != typed.read_text(encoding="utf-8")
