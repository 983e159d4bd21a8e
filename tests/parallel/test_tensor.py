import pytest
import torch

import mixtura as mx
from mixtura.parallel.mesh import make_mesh, one_process
from mixtura.parallel.tensor import TensorParallel, unit_order


@pytest.mark.parametrize("gated", [False, True])
def test_each_part_has_whole_units(gated):
    order = unit_order(6, parts=3, gated=gated)
    assert sorted(order.tolist()) == list(range(6 * (1 + gated)))
    for part, rows in enumerate(order.chunk(3)):
        units = [2 * part, 2 * part + 1]
        assert rows.tolist() == (units + [6 + unit for unit in units] if gated else units)


def test_one_rank_changes_nothing():
    torch.manual_seed(0)
    layer = mx.MoEConfig(dim=4, hidden=6, num_experts=3, k=2, bias=True, activation="gelu").build()
    x = torch.randn(5, 4)
    expected = layer(x)
    with one_process():
        mesh = make_mesh()["tp"]
        experts = TensorParallel(layer.experts, mesh)
        local = {name: p.to_local() for name, p in experts.named_parameters()}
        rows = []
        layer.experts.register_forward_pre_hook(lambda module, args: rows.append(args[0]))
        torch.func.functional_call(layer, {f"experts.{name}": value for name, value in local.items()}, (x,))
        y = rows[0].combine(torch.func.functional_call(experts, local, (rows[0],)))
    torch.testing.assert_close(y, expected)


def test_a_width_that_cannot_be_cut():
    class Mesh:
        ndim = 1

        def size(self, _):
            return 4

    with pytest.raises(mx.UserError, match="expected a hidden width that tp=4 divides, got 6"):
        TensorParallel(mx.GroupedMLP(num_experts=1, dim=2, hidden=6), Mesh())
