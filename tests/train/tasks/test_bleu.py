"""Scores by hand, and what is refused."""

import math

import pytest

from mixtura.errors import UserError
from mixtura.train.tasks import bleu


def test_bleu_is_the_geometric_mean_of_precisions_times_brevity():
    # Words 4 of 5, pairs 3 of 4, triples 2 of 3, fours 1 of 2, and no penalty: both have five words.
    found = bleu.score(["one two three four nine"], ["one two three four five"])
    assert found.bleu == pytest.approx(100 * math.exp(sum(map(math.log, (4 / 5, 3 / 4, 2 / 3, 1 / 2))) / 4))
    # Two words fewer: every precision is 1, and the penalty exp(1 - 6 / 4).
    assert bleu.score(["a b c d"], ["a b c d e f"]).bleu == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert found.signatures[0].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found.signatures[1].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_equal_texts_have_100_and_foreign_ones_0():
    same = bleu.score(["Y lloró Jesús hoy mismo.", "Amén."], ["Y lloró Jesús hoy mismo.", "Amén."])
    assert (same.bleu, same.chrf) == (pytest.approx(100), pytest.approx(100))
    assert bleu.score(["xx yy zz ww"], ["a b c d"]).chrf == 0


def test_as_many_references_are_needed():
    for texts in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(UserError, match="expected translations and as many references, got"):
            bleu.score(*texts)


def test_the_extra_is_named_where_sacrebleu_is_missing(monkeypatch):
    monkeypatch.setattr(bleu, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs sacrebleu, which is not installed; run: pip install 'mixtura\[translate\]'"
    ):
        bleu.require_sacrebleu()
