"""Sums over ranks: alone, and between two processes that share a layer but not its tokens."""

import torch
from torch import distributed as dist
from torch import multiprocessing, nn

import mixtura as mx
from mixtura.losses.balance import global_load_balance, load_balance
from mixtura.ranks import sum_over_ranks
from mixtura.routers import update_biases


def test_alone_the_values_are_their_sum():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert sum_over_ranks(values).tolist() == [1, 2]
    assert not sum_over_ranks(values).requires_grad


def make_layer():
    torch.manual_seed(0)
    recipe = mx.MoEConfig(
        dim=4, hidden=8, num_experts=4, k=2, router="sigmoid_bias", losses={"global_load_balance": 1.0}
    )
    layer = recipe.build()
    nn.init.normal_(layer.router.weight)
    return layer


def inputs():
    """Two micro-batches for each of two ranks; one of them gets no tokens."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, 4, generator=generator)
    return [[x[0], x[1]], [x[2] + 1, torch.zeros(0, 4)]]


def one_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    layer = make_layer()
    model = nn.parallel.DistributedDataParallel(layer)
    controlled = mx.BalanceController(layer, loss="global_load_balance", target=1.1)
    with mx.record(layer) as log:
        # Before the second forward the wrapper sends the first rank's buffers to all (behind no_sync it would not).
        model(inputs()[rank][0]).sum().backward()
        with mx.collect_losses(layer) as losses:
            y = model(inputs()[rank][1])
        (y.sum() + losses.total()).backward()
    pending = layer.router.pending_counts.clone()
    update_biases(layer)
    imbalance = controlled.step(log)
    values = {
        "pending": pending,
        "bias": layer.router.bias,
        "grad": layer.router.weight.grad,
        "imbalance": imbalance[""],
        "last loss": losses.total().detach(),
    }
    torch.save(values, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_count_as_one(tmp_path):
    multiprocessing.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]

    layer = make_layer()
    first, second = [[layer.router(x) for x in part] for part in inputs()]
    counts = [sum(routing.counts_E() for routing in part) for part in (first, second)]
    assert [values["pending"].tolist() for values in found] == [c.tolist() for c in counts]

    total = counts[0] + counts[1]
    expected_bias = 1e-3 * torch.sign(total.float().mean() - total)
    for values in found:
        torch.testing.assert_close(values["bias"], expected_bias)
        assert values["imbalance"] == total.max().item() * 4 / total.sum().item()

    # Each rank's loss takes the counts of both; a rank without tokens takes part and has none of its own.
    assert found[1]["last loss"].item() == 0
    torch.testing.assert_close(found[0]["last loss"], load_balance(first[1]).detach())

    # The mean of the ranks' gradients is that of one process with the counts of both.
    def loss(mine, other):
        counts_E = mine.counts_E() + other.counts_E()
        return 4 * (counts_E / counts_E.sum()) @ mine.probs_TE.mean(0)

    losses = loss(first[0], second[0]) + loss(second[0], first[0]) + loss(first[1], second[1])
    plain = make_layer()
    plain.losses = {}
    task = sum(plain(x).sum() for part in inputs() for x in part)
    task.backward()
    losses.backward()
    expected = (plain.router.weight.grad + layer.router.weight.grad) / 2
    for values in found:
        torch.testing.assert_close(values["grad"], expected)
    assert not torch.isclose(global_load_balance(first[0]), loss(first[0], second[0]))
