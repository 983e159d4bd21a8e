"""A Hugging Face checkpoint read by mx.hub, on a mesh: as on one process."""

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn

import mixtura as mx
from mixtura.parallel.clip import clip_grad_norm
from mixtura.parallel.mesh import make_mesh
from mixtura.parallel.shard import parallelize
from tests.distributed.cases import plain
from tests.distributed.pool import world
from tests.hub.tiny import stored

IDS = torch.arange(48).view(4, 12) * 7 % 40


def trained(folder, mesh):
    """Losses and parameters of three steps on each data rank's share of the sequences."""
    model = mx.hub.load(folder).train()
    ids = IDS
    if mesh:
        parallelize(model, make_mesh(**mesh))
        ids = IDS.chunk(dist.get_world_size() // mesh.get("tp", 1))[dist.get_rank() // mesh.get("tp", 1)]
    optimizer = torch.optim.AdamW(mx.param_groups(model, lr=1e-3), eps=1e-3)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        clip_grad_norm(model, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: plain(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mesh", [{"ep": 2}, {"dp": 2, "ep": 2}, {"fsdp": 2, "ep": 2}], ids=str)
def test_mixtral_trains_as_on_one_process(tmp_path, mesh):
    folder, _ = stored(tmp_path, "Mixtral", router_aux_loss_coef=0.0)
    expected, parameters = trained(folder, {})
    ranks = world(int(np.prod(list(mesh.values())))).run(trained, folder, mesh)
    np.testing.assert_allclose(np.mean([losses for losses, _ in ranks], axis=0), expected, rtol=1e-5)
    for name, value in parameters.items():
        np.testing.assert_allclose(ranks[0][1][name], value, rtol=1e-5, atol=1e-5, err_msg=name)
