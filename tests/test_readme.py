"""The pages' figures are those of the committed results."""

import pytest

from benchmarks.readme import BLOCK, MAKERS, PAGES, fill

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_the_blocks_are_what_the_results_give(page):
    assert fill(TEXTS[page]) == TEXTS[page], "run `python -m benchmarks.readme`"


def test_every_maker_has_one_block_and_every_block_its_maker():
    assert sorted(match[2] for text in TEXTS.values() for match in BLOCK.finditer(text)) == sorted(MAKERS)


def test_a_figure_typed_by_hand_is_found():
    text = TEXTS["README.md"]
    assert fill(text.replace("Ratio, median", "Ratio, about")) == text
