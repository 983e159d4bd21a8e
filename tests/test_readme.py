"""The README's figures are those of the committed results."""

from benchmarks.readme import BLOCK, MAKERS, README, fill


def test_the_blocks_are_what_the_results_give():
    text = README.read_text(encoding="utf-8")
    assert fill(text) == text, "run `python -m benchmarks.readme`"


def test_every_maker_has_its_block_and_every_block_its_maker():
    text = README.read_text(encoding="utf-8")
    assert sorted(match[2] for match in BLOCK.finditer(text)) == sorted(MAKERS)


def test_a_figure_typed_by_hand_is_found():
    text = README.read_text(encoding="utf-8")
    assert fill(text.replace("Ratio, median", "Ratio, about")) == text
