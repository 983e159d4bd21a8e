"""What a run needs, against models that are cut, tensors that are kept, and bytes that were sent."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.cli import main
from mixtura.models.count import count_parameters
from mixtura.parallel.mesh import make_mesh
from mixtura.parallel.shard import parallelize
from mixtura.train.config import MeshConfig
from mixtura.train.optim import OptimConfig, build_optimizer
from mixtura.train.plan import Living, activations, held_numbers, kept_bytes, plan, sent_bytes
from mixtura.train.recipes import get_recipe
from mixtura.train.setup import build_model
from tests.distributed.pool import world

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "scaling.json"


def language(*, mesh=None, **model):
    tiny = get_recipe("lm-tiny")
    sizes = {"dim": 32, "hidden": 48, "num_experts": 4, "k": 2, "router": "topk", "layers": 4, **model}
    data = replace(tiny.data, batch_size=6, seq_len=32)
    model = replace(tiny.model, vocab_size=data.vocab_size, context=data.seq_len, **sizes)
    return replace(tiny, model=model, data=data, mesh=MeshConfig(**(mesh or {})))


def local_numbers(mesh):
    """Parameters that each rank holds."""
    torch.manual_seed(0)
    model = build_model(language())
    parallelize(model, make_mesh(**mesh))
    return sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters())


@pytest.mark.parametrize(
    "mesh",
    [{"dp": 4}, {"fsdp": 4}, {"ep": 4}, {"fsdp": 2, "ep": 2}, {"ep": 2, "tp": 2}, {"fsdp": 2, "tp": 2}],
    ids=str,
)
def test_parameters_are_those_of_a_model_that_is_cut(mesh):
    found = world(4).run(local_numbers, mesh)
    with torch.device("meta"):
        model = build_model(language())
    assert sum(held_numbers(model, MeshConfig(**mesh)).values()) == max(found)


def test_parameters_by_hand():
    # 7 (24 + 24) of the experts, 28 of the router.
    layer = mx.MoEConfig(dim=4, hidden=6, num_experts=7, k=1, router="switch", activation="relu").build()
    assert sum(held_numbers(layer, MeshConfig()).values()) == 7 * 48 + 28
    assert sum(held_numbers(layer, MeshConfig(ep=4)).values()) == 2 * 48 + 28
    assert sum(held_numbers(layer, MeshConfig(tp=2)).values()) == 7 * 24 + 28
    assert sum(held_numbers(layer, MeshConfig(ep=14)).values()) == 48 + 28  # two replicas


class Four(nn.Sequential):
    """The model of `python -m benchmarks.scaling layouts`."""

    def __init__(self):
        sizes = {"dim": 128, "hidden": 256, "num_experts": 8, "k": 2, "shared_hidden": 256}
        parts = [(nn.Linear(128, 128), mx.MoEConfig(**sizes).build()) for _ in range(2)]
        super().__init__(*(module for pair in parts for module in pair))


@pytest.mark.parametrize("layout", ["dp=4", "fsdp=4", "ep=4", "dp=2 ep=2", "fsdp=2 ep=2", "ep=2 tp=2"])
def test_what_is_sent_is_what_was_counted_on_a_network(layout):
    """By the committed result; gloo reduces twice what a ring does, which makes a third more of fsdp."""
    measured = json.loads(MEASURED.read_text())["layouts"]["found"][layout]
    mesh = MeshConfig(**{axis: int(size) for axis, size in (part.split("=") for part in layout.split())})
    with torch.device("meta"):
        model = Four()
    sent = sent_bytes(model, mesh, tokens=4096 * mesh.tp // 4)
    total = sum(sent.values()) + sent.get("fsdp", 0) / 3
    assert total / 1e6 == pytest.approx(measured["MB sent by each process"], rel=0.03)
    assert sum(held_numbers(model, mesh).values()) == measured["parameters held"]


SIZES = [{}, {"moe_every": 1}, {"num_experts": 0}, {"k": 1, "router": "switch", "layers": 8}]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_activations_are_those_that_the_whole_model_keeps(sizes):
    config = language(**sizes)
    ids = torch.randint(config.data.vocab_size, (6, 32))
    assert activations(config) == pytest.approx(kept_bytes(build_model(config), ids), rel=0.05)


def test_kept_by_hand():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5))

        def forward(self, x, targets_BL):
            hidden = (x.float() * self.weight).exp()  # keeps x as float and its own output
            return hidden.sum()

    # 10 rows of 5 numbers, twice; the sum itself.
    assert kept_bytes(Model(), torch.zeros(10, 5, dtype=torch.int64)) == 2 * 200 + 4


def test_the_total_is_what_a_training_step_holds():
    config = language()
    ids = torch.randint(config.data.vocab_size, (6, 32))
    with Living() as living:
        model = build_model(config)
        optimizer = build_optimizer(model, OptimConfig())
        for _ in range(2):  # gradients of the first step are kept while the second goes forward
            loss = model(ids, targets_BL=ids)
            if optimizer.state:
                break
            loss.backward()
            optimizer.step()
        held = sum({ref.cdata: size for ref, size in living.made if not ref.expired()}.values())
    told = plan(config)
    assert told.total == pytest.approx(held, rel=0.05)
    assert told.parameters == count_parameters(model).total


def test_from_the_command_line(capsys):
    small = ["--model.dim", "32", "--data.batch-size", "2", "--data.seq-len", "16", "--model.num-experts", "4"]
    assert main(["plan", "lm-tiny", *small, "--mesh.ep", "2"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    names = ["parameters", "weights", "gradients", "optimizer", "activations", "together"]
    assert [line.rsplit(" ", 2 if number else 1)[0] for number, line in enumerate(lines[:6])] == names
    assert [line.split(",")[0] for line in lines[6:]] == ["sent by gradients", "sent by ep"]
    # Four times the half of 32 rows of 32 numbers, of 4 bytes.
    assert lines[-1] == f"sent by ep, a step {4 * 16 * 32 * 4 / 1e6:.1f} MB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit-tiny"], "expected a run of a language model, got 'vit-tiny', whose task is vision"),
        (["lm-tiny", "--model.k", "9", "--model.router", "topk", "--model.num-experts", "4"], "model: expected 1 <= k"),
    ],
)
def test_bad_input(capsys, arguments, message):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
