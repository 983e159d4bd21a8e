"""Figures of experts by language, by hand; translations in the order of their texts, hostile ones too."""

import pytest
import torch

from mixtura.models.translator import Translator, TranslatorConfig
from mixtura.train.data.pairs import Codec
from mixtura.train.data.tokenizer import TextTokenizer
from mixtura.train.tasks.translations import language_panels, main_share, shares_by_language, translate


def test_experts_of_their_own_tell_the_whole_language():
    seen = {
        "domains": ["a-b", "b-a", "c-a"],
        "layers": {"own": {"counts": [[9, 0], [0, 1], [0, 3]]}, "any": {"counts": [[5, 5], [1, 1], [4, 4]]}},
    }
    table, own, other = language_panels(seen)
    assert table["rows"] == [["own", 1.0, "100%"], ["any", 0.0, "50%"]]
    assert (own["rows"], own["values"]) == (["a", "b"], [[0, 1], [1, 0]])
    assert other["values"] == [[0.5, 0.5], [0.5, 0.5]]
    assert language_panels({"domains": ["a-b", "b-a"], "layers": {}}) == []


def test_each_language_counts_the_same():
    share = shares_by_language(["x-a", "x-b"], [[900, 100], [1, 3]])
    assert share.tolist() == [[0.9, 0.1], [0.25, 0.75]]
    assert main_share(share) == pytest.approx((0.9 + 0.75) / 2)


def test_translations_are_those_of_each_text_alone():
    torch.manual_seed(0)
    codec = Codec(tokenizer=TextTokenizer.train([], vocab_size=257), languages=("a", "b"))
    model = Translator(TranslatorConfig(vocab_size=codec.vocab_size, context=24, dim=16, heads=2, num_experts=4)).eval()
    texts = ["one", "", "a longer text", "<b>&amp;\u2028</b>", "ñ", "two"]
    sources = [codec.source(text, to="b") for text in texts]
    together = translate(model, codec, sources, beam=2, alpha=0.6, tokens=40)
    assert together == [translate(model, codec, [source], beam=2, alpha=0.6)[0] for source in sources]
    assert translate(model, codec, [], beam=2, alpha=0.6) == []
