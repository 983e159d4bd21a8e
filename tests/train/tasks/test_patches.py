"""Which patches go where, against the routing itself, and the picture that shows it."""

import base64
import dataclasses
import struct
import zlib

import pytest
import torch

import mixtura as mx
from mixtura import Capacity
from mixtura.models.vit import ViT, ViTConfig
from mixtura.train.data.images import Images, ImageSet
from mixtura.train.tasks.patches import coloured, expert_of_patch, patch_panels, png

TINY = ViTConfig(image_size=8, patch_size=2, dim=12, layers=2, heads=2, hidden=8, dense_hidden=16, num_experts=4)


def make_model(**options) -> ViT:
    return ViT(dataclasses.replace(TINY, **options)).eval()


def test_without_capacity_every_patch_has_its_first_choice():
    model, x = make_model(), torch.randn(3, 1, 8, 8)
    with mx.record(model) as log:
        found = expert_of_patch(model, x)
    assert list(found) == ["blocks.1.feed_forward"]
    expected = log["blocks.1.feed_forward"][0].first_choice_T()
    assert torch.equal(found["blocks.1.feed_forward"].flatten(), expected)


@pytest.mark.parametrize("policy", ["drop", "priority"])
def test_what_was_dropped_is_marked(policy):
    model, x = make_model(k=1, policy=policy), torch.randn(3, 1, 8, 8)
    model.blocks[1].feed_forward.eval_capacity = Capacity(fixed=5)
    with mx.record(model) as log:
        found = expert_of_patch(model, x)["blocks.1.feed_forward"].flatten()
    routing = log["blocks.1.feed_forward"][0].routing
    for expert in range(4):
        asked = [t for t in range(48) if routing.expert_N[t] == expert]
        if policy == "priority":
            asked.sort(key=lambda t: -routing.weight_N[t].item())
        assert sorted(asked[:5]) == (found == expert).nonzero().flatten().tolist()
    assert (found == -1).sum() > 0


def test_a_patch_that_lost_its_first_choice_shows_its_second():
    model, x = make_model(k=2), torch.randn(1, 1, 8, 8)
    model.blocks[1].feed_forward.eval_capacity = Capacity(fixed=1)
    found = expert_of_patch(model, x)["blocks.1.feed_forward"]
    assert sorted(found[found >= 0].tolist()) == sorted(set(found[found >= 0].tolist()))


def test_experts_that_choose_and_slots():
    free = {"capacity_factor": None, "losses": {}}
    chosen = make_model(router="expert_choice", router_options={}, **free)
    assert list(expert_of_patch(chosen, torch.randn(2, 1, 8, 8))) == ["blocks.1.feed_forward"]
    soft = make_model(router="soft", router_options={}, k=4, **free)
    assert expert_of_patch(soft, torch.randn(2, 1, 8, 8)) == {}


def test_colours_lie_where_the_patches_are():
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    pixels = coloured(image, torch.tensor([[0, 1, -1, 0]]), size=2)
    small = pixels[2::4, 2::4]
    assert small.shape == (10, 5, 3)
    assert (small[4] == 255).all()  # the line between
    assert (small[:4, :4] == 0).all()  # the image
    first, second, dropped = (small[row, column].tolist() for row, column in ((5, 0), (5, 2), (7, 0)))
    assert len({tuple(first), tuple(second), tuple(dropped)}) == 3
    assert max(dropped) < 20
    assert small[8, 3].tolist() == first


def test_a_png_holds_the_pixels():
    pixels = torch.randint(0, 256, (3, 5, 3), dtype=torch.uint8)
    data = png(pixels)
    assert struct.unpack(">II", data[16:24]) == (5, 3)
    start = data.index(b"IDAT") + 4
    length = struct.unpack(">I", data[start - 8 : start - 4])[0]
    lines = zlib.decompress(data[start : start + length])
    assert lines == b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)


def test_a_panel_for_each_mixture():
    part = ImageSet(torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.tensor([1, 0, 1, 0]))
    images = Images(name="t", classes=("a", "b"), train=part, val=part)
    panels = patch_panels(make_model(layers=4), images)
    assert [panel["title"] for panel in panels] == [f"Patches by expert, blocks.{n}.feed_forward" for n in (1, 3)]
    head = base64.b64decode(panels[0]["png"])[16:24]
    assert struct.unpack(">II", head) == (2 * 9 * 4, 2 * 9 * 4)
