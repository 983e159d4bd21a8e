import pytest
import torch

from mixtura.errors import UserError
from mixtura.mapping import Place, Rule, fill, rename, translate

UP = [
    Rule(r"l\.(\d+)\.experts\.(\d+)\.w1", r"blocks.\1.up[\2:0/2]"),
    Rule(r"l\.(\d+)\.experts\.(\d+)\.w3", r"blocks.\1.up[\2:1/2]"),
    Rule(r"l\.(\d+)\.rotary", None),
]


def checkpoint():
    return {
        f"l.{layer}.experts.{e}.{w}": torch.full((3, 2), 100.0 * layer + 10 * e + (w == "w3"))
        for layer in range(2)
        for e in range(4)
        for w in ("w3", "w1")
    }


def test_separate_matrices_fill_one_stack_gate_half_first():
    target = {f"blocks.{layer}.up": torch.full((4, 6, 2), torch.nan, dtype=torch.float64) for layer in range(2)}
    fill(target, iter((checkpoint() | {"l.0.rotary": torch.zeros(1)}).items()), rules=UP)
    for layer in range(2):
        for e in range(4):
            expected = torch.tensor([100.0 * layer + 10 * e] * 3 + [100.0 * layer + 10 * e + 1] * 3)
            assert torch.equal(target[f"blocks.{layer}.up"][e], expected.double().unsqueeze(1).expand(6, 2))


def test_a_stack_is_taken_apart_into_what_it_was_made_of():
    source = checkpoint()
    target = {f"blocks.{layer}.up": torch.empty(4, 6, 2) for layer in range(2)}
    fill(target, source, rules=UP)
    back = [
        Rule(r"blocks\.(\d+)\.up", r"l.\1.experts.{}.w1", lambda w: w.chunk(2, 1)[0]),
        Rule(r"blocks\.(\d+)\.up", r"l.\1.experts.{}.w3", lambda w: w.chunk(2, 1)[1]),
    ]
    renamed = dict(rename(target, rules=back))
    assert renamed.keys() == source.keys()
    assert all(torch.equal(renamed[name], source[name]) for name in source)


def test_fill_copies_as_it_reads():
    target = {"blocks.0.up": torch.zeros(1, 2, 1)}

    def stream():
        yield "l.0.experts.0.w1", torch.ones(1, 1)
        assert target["blocks.0.up"].flatten().tolist() == [1, 0]
        yield "l.0.experts.0.w3", torch.full((1, 1), 2.0)

    fill(target, stream(), rules=UP)
    assert target["blocks.0.up"].flatten().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("l.1.experts.2.w3"), r"only a part, for blocks\.1\.up$"),
        (lambda s: s.update({"l.0.norm": torch.zeros(2)}), r"got 'l\.0\.norm' of shape \(2,\)"),
        (lambda s: s.update({"l.7.experts.0.w1": torch.zeros(3, 2)}), r"'l\.7\.experts\.0\.w1' -> 'blocks\.7\.up'"),
        (lambda s: s.update({"l.0.experts.4.w1": torch.zeros(3, 2)}), "expected an index below 4 for .*, got 4"),
        (lambda s: s.update({"l.0.experts.0.w1": torch.zeros(2, 3)}), r"expected shape \(3, 2\) for .* got \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    source = checkpoint()
    change(source)
    target = {f"blocks.{layer}.up": torch.zeros(4, 6, 2) for layer in range(2)}
    with pytest.raises(UserError, match=message):
        fill(target, source, rules=UP)


def test_a_place_is_filled_once():
    rules = [Rule(r"[ab]", "c")]
    two = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(UserError, match=r"expected one tensor for 'c'.*got a second one, 'b'"):
        fill({"c": torch.zeros(1)}, two, rules=rules)
    with pytest.raises(UserError, match="expected one tensor for 'c', got a second one, 'b'"):
        dict(rename(two, rules=rules))
    with pytest.raises(UserError, match="expected rules without a place"):
        dict(rename(checkpoint(), rules=UP))


def test_scalars_and_transforms():
    target = {"scale": torch.zeros(())}
    fill(target, {"log_scale": torch.tensor(0.0)}, rules=[Rule("log_scale", "scale", torch.exp)])
    assert target["scale"].item() == 1


@pytest.mark.parametrize(
    ("replacement", "place"),
    [
        ("y", Place()),
        ("y[3]", Place(index=3)),
        ("y[3:1/2]", Place(index=3, part=(1, 2))),
        ("y[:1/3]", Place(part=(1, 3))),
    ],
)
def test_places(replacement, place):
    assert translate("x", torch.zeros(1), rules=[Rule("x", replacement)])[0][::2] == ("y", place)


def test_a_place_that_is_none():
    with pytest.raises(UserError, match=r"name\[3:0/2\] or name\[:0/2\], got 'y\[a\]'"):
        translate("x", torch.zeros(1), rules=[Rule("x", "y[a]")])
