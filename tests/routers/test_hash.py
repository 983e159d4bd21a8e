"""Hash and Random: the table, its balance, and what is drawn."""

import itertools

import pytest
import torch

import mixtura as mx
from mixtura import UserError
from mixtura.routers.hash import Hash, Random
from tests.routers.tables import rows


class TestHash:
    def test_the_table_decides_and_x_does_not(self):
        router, ids = Hash(4, 5, 2, vocab_size=30), torch.randint(0, 30, (40,))
        routing = router(torch.randn(40, 4), context_T=ids)
        assert torch.equal(routing.expert_N, router.table[ids].flatten())
        assert torch.equal(routing.expert_N, router(torch.randn(40, 4), context_T=ids).expert_N)
        assert routing.weight_N.tolist() == [0.5] * 80
        assert routing.probs_TE[0, router.table[ids[0]]].tolist() == [0.5, 0.5]
        assert not list(router.parameters())

    def test_the_random_table_is_uniform_with_different_hashes(self):
        table = Hash(4, 5, 3, vocab_size=10_000).table
        assert all(len(set(row)) == 3 for row in table[:200].tolist())
        for column in table.T:
            shares = column.bincount(minlength=5) / 10_000
            assert ((shares - 0.2).abs() < 0.02).all()

    def test_the_seed_decides_alone(self):
        torch.manual_seed(5)
        one = Hash(4, 5, vocab_size=100)
        torch.manual_seed(6)
        assert torch.equal(one.table, Hash(4, 5, vocab_size=100).table)
        assert not torch.equal(one.table, Hash(4, 5, vocab_size=100, seed=1).table)

    def test_ids_beyond_the_table_begin_again(self):
        router = Hash(4, 5, vocab_size=10)
        ids = torch.tensor([3, 13, 10_003, -7])
        assert len(set(router(torch.zeros(4, 4), context_T=ids).expert_N.tolist())) == 1

    def test_balanced_by_hand(self):
        # 9 -> expert 0, 5 -> 1, 4 -> 1 (5 + 4 = 9), 3 -> 0 (a tie goes to the lower number)
        assert Hash(4, 2, frequencies=[3, 9, 4, 5]).table.flatten().tolist() == [0, 0, 1, 1]

    def test_balance_with_two_hashes_and_a_long_tail(self):
        frequencies = [1000 / (rank + 1) for rank in range(500)]
        table = Hash(4, 4, 2, frequencies=frequencies).table
        assert all(len(set(row)) == 2 for row in table.tolist())
        load = torch.zeros(4)
        for row, frequency in zip(table.tolist(), frequencies, strict=True):
            load[row] += frequency / 2
        assert load.max() / load.mean() < 1.01

    def test_ids_that_never_occurred_stay_spread(self):
        router = Hash(4, 4, frequencies=[5.0] + [0.0] * 999)
        assert router.table.flatten().bincount(minlength=4).min() > 200

    def test_the_layer_hands_over_the_ids(self):
        layer = mx.MoEConfig(dim=4, hidden=4, num_experts=3, router="hash", router_options={"vocab_size": 9}).build()
        x, ids = torch.randn(2, 5, 4), torch.randint(0, 9, (2, 5))
        with mx.record(layer) as log:
            layer(x, context=ids)
        assert torch.equal(log[""][0].routing.expert_N, layer.router.table[ids.flatten()].flatten())
        with pytest.raises(UserError, match="expected context= for a Hash router, got None"):
            layer(x)

    def test_a_checkpoint_keeps_the_table(self):
        one, other = Hash(4, 5, vocab_size=50, seed=1), Hash(4, 5, vocab_size=50, seed=2)
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.table, other.table)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"vocab_size": 0}, "expected vocab_size of at least 1, got 0"),
            ({"frequencies": [1.0, -1.0]}, "expected frequencies that are finite, not negative"),
            ({"frequencies": [0.0, 0.0]}, "and not all 0"),
            ({"frequencies": []}, "expected frequencies"),
            ({"frequencies": [1.0], "vocab_size": 3}, "expected 3 frequencies, as vocab_size says, got 1"),
            ({"k": 4}, "expected 1 <= k <= num_experts, got k=4"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(UserError, match=message):
            Hash(4, 3, **options)

    @pytest.mark.parametrize(
        ("context", "message"),
        [
            (None, "expected context_T, the token ids"),
            (torch.zeros(3), r"one integer id per token, of shape \(3,\), got torch.float32 of shape \(3,\)"),
            (torch.zeros(3, 2, dtype=torch.long), r"got torch.int64 of shape \(3, 2\)"),
        ],
    )
    def test_bad_context(self, context, message):
        with pytest.raises(UserError, match=message):
            Hash(4, 3, vocab_size=5)(torch.zeros(3, 4), context_T=context)


class TestRandom:
    def test_every_pair_is_equally_likely_and_drawn_anew(self):
        router, T = Random(4, 4, 2), 12_000
        pairs = rows(router(torch.zeros(T, 4)).expert_N, 2)
        assert pairs != rows(router(torch.zeros(T, 4)).expert_N, 2)
        for pair in itertools.permutations(range(4), 2):
            assert pairs.count(list(pair)) / T == pytest.approx(1 / 12, abs=0.01)

    def test_weights_and_probabilities(self):
        routing = Random(4, 5, 4)(torch.randn(2, 4).bfloat16())
        assert routing.weight_N.tolist() == [0.25] * 8
        torch.testing.assert_close(routing.probs_TE, torch.full((2, 5), 0.2))
