"""A checkpoint of any layout, read by any other, to the same bits."""

import numpy as np
import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura.parallel.balance import Placement
from mixtura.parallel.checkpoint import Saver, export_safetensors, is_whole, load, read_weights
from mixtura.parallel.clip import clip_grad_norm
from mixtura.parallel.mesh import make_mesh
from mixtura.parallel.shard import parallelize
from tests.distributed.cases import Case, batch, loss_of, make_model, make_optimizer, plain
from tests.distributed.pool import world

TOKENS = {1: (12,), 2: (9, 14), 4: (9, 14, 0, 5)}


def values(model, optimizer):
    """Everything that must survive, by name and on this rank whole; reordered units in their own order."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = plain(parameter)
        for key, value in optimizer.state[parameter].items():
            found[f"{name} {key}"] = plain(value)
    for name, buffer in model.named_buffers():
        found[f"{name} buffer"] = plain(buffer)
    return found


def prepared(case, seed=7):
    model = make_model(case)
    if case.mesh:
        parallelize(model, make_mesh(**case.mesh), **case.options)
    return model, make_optimizer(model, case)


def save(case, folder):
    model, optimizer = prepared(case)
    rank = 0 if not torch.distributed.is_initialized() else torch.distributed.get_rank()
    data_rank = rank // case.mesh.get("tp", 1)
    loss_of(model, case, data_rank, 0).backward()
    optimizer.step()
    optimizer.zero_grad()
    saver = Saver()
    saver.save(folder, model, optimizer)
    before = values(model, optimizer)
    with torch.no_grad():  # training goes on while the checkpoint is written
        for parameter in model.parameters():
            parameter.mul_(2)
    saver.wait()
    return before


def restore(case, folder):
    model, optimizer = prepared(case)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load(folder, model, optimizer)
    return values(model, optimizer)


def moved(case, folder, to):
    """Read a checkpoint, write it to another folder; a pass over the next batch, as one sees it from outside."""
    model, optimizer = prepared(case)
    load(folder, model, optimizer)
    saver = Saver()
    saver.save(to, model, optimizer)
    saver.wait()
    data_rank = torch.distributed.get_rank() // case.mesh.get("tp", 1)
    x, _ = batch(case, data_rank, 1)
    y = model(x)
    loss_of(model, case, data_rank, 1).backward()
    norm = clip_grad_norm(model, 1.0).item()
    dense = {name: plain(p.grad) for name, p in model.named_parameters() if ".experts." not in name}
    return y.detach().numpy(), norm, dense


PLACED = {
    "blocks.0.mixture": Placement(experts=((0, 2, 3), (0, 1, 3)), loads=(1.0, 1.0)),
    "blocks.1.mixture": Placement(experts=((1, 3), (0, 2)), loads=(1.0, 1.0)),
}


@pytest.mark.parametrize("mesh", [{"ep": 2}, {"dp": 2, "ep": 2}, {"fsdp": 2, "ep": 2}, {"ep": 2, "tp": 2}], ids=str)
def test_experts_move_at_a_checkpoint(tmp_path, mesh):
    """Placed by load and some copied: parameters and optimizer state to the bit, outputs and gradients alike."""
    case = case_of(mesh)
    saved = on({"dp": 1}, save, case_of({"dp": 1}), tmp_path / "first")
    size = int(np.prod(list(mesh.values())))
    before = world(size).run(moved, case, tmp_path / "first", tmp_path / "second")
    placed = Case(**{**vars(case), "options": {"placement": PLACED}})
    after = world(size).run(moved, placed, tmp_path / "second", tmp_path / "third")
    found = on({"dp": 1}, restore, case_of({"dp": 1}), tmp_path / "third")
    assert found.keys() == saved.keys()
    for name, value in saved.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for (y, norm, grads), (y2, norm2, grads2) in zip(before, after, strict=True):
        np.testing.assert_allclose(y2, y, rtol=1e-5, atol=1e-6)
        assert norm2 == pytest.approx(norm, rel=1e-5)
        for name, grad in grads.items():
            np.testing.assert_allclose(grads2[name], grad, rtol=1e-5, atol=1e-6, err_msg=name)


def case_of(mesh, experts="swiglu"):
    size = int(np.prod(list(mesh.values()))) // mesh.get("tp", 1)
    return Case(mesh=mesh, tokens=TOKENS[size], num=4, router="sigmoid_bias", optimizer="adamw", experts=experts)


def on(mesh, function, case, folder):
    """The values of all ranks together; a mesh of one rank is this very process."""
    size = int(np.prod(list(mesh.values())))
    ranks = [function(case_alone(case), folder)] if size == 1 else world(size).run(function, case, folder)
    return {name: value for found in ranks for name, value in found.items()}


def case_alone(case):
    return Case(**{**vars(case), "mesh": {}})


# Worlds of 1, 2, 4 with ep 1, 2, 4.
SOURCES = [{"dp": 1}, {"dp": 2}, {"ep": 2}, {"dp": 4}, {"fsdp": 4}, {"dp": 2, "ep": 2}, {"fsdp": 2, "ep": 2}, {"ep": 4}]
TARGETS = [{"dp": 1}, {"ep": 2}, {"fsdp": 2}, {"dp": 4}, {"dp": 2, "ep": 2}, {"fsdp": 2, "ep": 2}, {"ep": 4}]


@pytest.mark.parametrize(
    ("source", "experts"),
    [*((source, "swiglu") for source in SOURCES), ({"ep": 2}, "modules"), ({"fsdp": 2, "ep": 2}, "modules")],
    ids=str,
)
def test_any_layout_reads_any_other(tmp_path, source, experts):
    saved = on(source, save, case_of(source, experts), tmp_path)
    for target in TARGETS:
        found = on(target, restore, case_of(target, experts), tmp_path)
        assert found.keys() == saved.keys()
        for name, value in saved.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{name}, {source} to {target}")


@pytest.mark.parametrize("target", [{"dp": 1}, {"ep": 2}, {"tp": 2}], ids=str)
def test_reordered_units_are_written_in_their_own_order(tmp_path, target):
    source = {"ep": 2, "tp": 2}
    saved = on(source, save, case_of(source), tmp_path)
    found = on(target, restore, case_of(target), tmp_path)
    weights = read_weights(tmp_path)
    for name, value in saved.items():
        if "up_proj" in name and "step" not in name:
            # Two ranks of three units each: gate and value rows of the first, then of the second.
            order = torch.arange(16).view(2, 2, 4).transpose(0, 1).reshape(-1)
            value = value[:, order.argsort().numpy()]
            if "tp" in target:
                found[name] = found[name][:, order.argsort().numpy()]
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        if " " not in name:
            np.testing.assert_array_equal(weights[name].numpy(), value)


def test_consolidated_export(tmp_path):
    from safetensors.torch import load_file

    case = case_of({"ep": 2})
    saved = on(case.mesh, save, case, tmp_path / "checkpoint")
    export_safetensors(tmp_path / "checkpoint", tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    model = make_model(case)
    model.load_state_dict(load_file(file))
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), saved[name])


def test_no_whole_checkpoint(tmp_path):
    model = nn.Linear(2, 1)
    with pytest.raises(mx.UserError, match=r"expected a whole checkpoint in .*, got none; take an earlier one"):
        load(tmp_path, model, torch.optim.SGD(model.parameters()))
    assert not is_whole(tmp_path)


def test_another_model(tmp_path):
    model = nn.Linear(2, 1)
    Saver().save(tmp_path, model, torch.optim.AdamW(model.parameters()))
    other = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(mx.UserError, match=r"expected a checkpoint of this .* without model.0"):
        load(tmp_path, other, torch.optim.AdamW(other.parameters()))
