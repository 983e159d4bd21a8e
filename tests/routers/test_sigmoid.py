"""SigmoidBias: unbiased weights, biased choices, groups, and the walk of the bias."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.routers.sigmoid import SigmoidBias, update_biases
from tests.routers.tables import with_logits


def sigmoid(*values):
    return torch.tensor(values).sigmoid()


class TestWeights:
    def test_the_bias_changes_the_choice_and_not_the_weight(self):
        router = SigmoidBias(1, 3, 2, renormalize=False)
        assert with_logits(router, [[2.0, 1.0, -1.0]]).expert_N.tolist() == [0, 1]
        router.bias.copy_(torch.tensor([-5.0, 0.0, 0.0]))
        routing = with_logits(router, [[2.0, 1.0, -1.0]])
        assert routing.expert_N.tolist() == [1, 2]
        torch.testing.assert_close(routing.weight_N, sigmoid(1.0, -1.0))

    def test_renormalised_weights_sum_to_the_scale(self):
        routing = with_logits(SigmoidBias(1, 3, 2, scale=2.5), [[2.0, 1.0, -1.0]])
        scores = sigmoid(2.0, 1.0)
        torch.testing.assert_close(routing.weight_N, 2.5 * scores / scores.sum())

    def test_hopeless_scores_do_not_divide_by_zero(self):
        routing = with_logits(SigmoidBias(1, 3, 2), [[-200.0, -200.0, -200.0]])
        assert routing.weight_N.isfinite().all()
        assert routing.probs_TE.isfinite().all()

    def test_probs_are_the_normalised_scores(self):
        routing = with_logits(SigmoidBias(1, 3, 2), [[2.0, 1.0, -1.0]])
        scores = sigmoid(2.0, 1.0, -1.0)
        torch.testing.assert_close(routing.probs_TE[0], scores / scores.sum())

    def test_the_bias_gets_no_gradient_the_matrix_does(self):
        router = SigmoidBias(4, 3, 2)
        (router(torch.randn(5, 4)).weight_N ** 2).sum().backward()
        assert router.weight.grad.norm() > 0
        assert "bias" not in dict(router.named_parameters())

    def test_one_choice_with_a_constant_weight_warns(self):
        with pytest.warns(UserWarning, match="the task gives the router no gradient") as caught:
            SigmoidBias(4, 2, 1)
        assert caught[0].filename == __file__
        SigmoidBias(4, 2, 1, renormalize=False)


class TestGroups:
    def test_a_group_counts_by_its_two_best(self):
        # Best single score in group 0, best pair in group 1.
        router = SigmoidBias(1, 4, 2, groups=2, group_k=1, renormalize=False)
        routing = with_logits(router, [[3.0, -3.0, 2.0, 1.5]])
        assert routing.expert_N.tolist() == [2, 3]

    def test_masked_experts_stay_out_even_where_all_biased_scores_are_negative(self):
        router = SigmoidBias(1, 4, 2, groups=2, group_k=1)
        router.bias.fill_(-10.0)
        routing = with_logits(router, [[3.0, 2.0, -1.0, -2.0]])
        assert routing.expert_N.tolist() == [0, 1]

    def test_the_bias_takes_part_in_the_choice_of_groups(self):
        router = SigmoidBias(1, 4, 2, groups=2, group_k=1)
        router.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
        assert with_logits(router, [[3.0, 2.0, -1.0, -2.0]]).expert_N.tolist() == [2, 3]

    def test_groups_of_one_expert(self):
        router = SigmoidBias(1, 3, 2, groups=3, group_k=2)
        assert with_logits(router, [[1.0, -1.0, 2.0]]).expert_N.tolist() == [2, 0]

    def test_all_groups_are_no_restriction(self):
        router, x_TD = SigmoidBias(4, 6, 3, groups=3), torch.randn(9, 4)
        free = SigmoidBias(4, 6, 3)
        free.load_state_dict(router.state_dict())
        assert torch.equal(router(x_TD).expert_N, free(x_TD).expert_N)

    def test_every_choice_lies_in_group_k_groups(self):
        router = SigmoidBias(4, 12, 4, groups=4, group_k=2, init_std=1.0)
        groups_TK = router(torch.randn(50, 4)).expert_N.view(50, 4) // 3
        assert all(len(set(row)) <= 2 for row in groups_TK.tolist())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"groups": 0}, "expected groups that divide num_experts=4, got groups=0"),
            ({"groups": 3}, "expected groups that divide num_experts=4, got groups=3"),
            ({"groups": 2, "group_k": 3}, "expected 1 <= group_k <= groups=2 .* got group_k=3 groups of 2"),
            ({"groups": 2, "group_k": 0}, "got group_k=0"),
            ({"groups": 4, "group_k": 1}, "at least k=2 experts .* got group_k=1 groups of 1 experts"),
        ],
    )
    def test_impossible_groups(self, options, message):
        with pytest.raises(UserError, match=message):
            SigmoidBias(4, 4, 2, **options)


class TestBias:
    def counted(self, counts, **options):
        router = SigmoidBias(4, len(counts), 2, **options)
        router.pending_counts.copy_(torch.tensor(counts))
        router.update_bias()
        return router

    def test_it_moves_against_the_load(self):
        router = self.counted([10, 1, 4, 5])  # mean 5
        torch.testing.assert_close(router.bias, torch.tensor([-1e-3, 1e-3, 1e-3, 0.0]))
        assert router.pending_counts.tolist() == [0, 0, 0, 0]

    def test_centring_keeps_the_mean(self):
        router = self.counted([10, 1, 4, 5], gamma=0.1, center=True)
        torch.testing.assert_close(router.bias, torch.tensor([-0.125, 0.075, 0.075, -0.025]))

    def test_without_counts_nothing_moves(self):
        router = self.counted([0, 0, 0])
        assert not router.bias.any()

    def test_update_biases_finds_every_router(self):
        model = nn.Sequential(SigmoidBias(4, 2), nn.ModuleList([SigmoidBias(4, 2), nn.Linear(2, 2)]))
        for router in (model[0], model[1][0]):
            router.pending_counts.copy_(torch.tensor([4, 0]))
        update_biases(model)
        for router in (model[0], model[1][0]):
            torch.testing.assert_close(router.bias, torch.tensor([-1e-3, 1e-3]))

    def test_it_balances_a_lopsided_router(self):
        torch.manual_seed(0)
        layer = mx.MoEConfig(
            dim=4,
            hidden=4,
            num_experts=4,
            k=1,
            router="sigmoid_bias",
            router_options={"renormalize": False, "gamma": 0.02},
        ).build()
        with torch.no_grad():
            layer.router.weight.normal_(std=0.3)
            layer.router.weight[0] += 1.0
        x = torch.randn(256, 4) + 0.5
        before = layer.router(x).counts_E()
        for _ in range(60):
            layer(x)
            update_biases(layer)
        after = layer.router(x).counts_E()
        assert before.max() > 150
        assert after.max() < 90  # an even share is 64

    def test_a_bf16_model_keeps_the_bias_in_fp32(self):
        router = nn.Sequential(SigmoidBias(4, 2)).bfloat16()[0]
        assert router.weight.dtype is torch.bfloat16
        assert router.bias.dtype is torch.float32
        router.bias.fill_(0.5)
        for _ in range(3):
            router.pending_counts.copy_(torch.tensor([4, 0]))
            router.update_bias()
        torch.testing.assert_close(router.bias, torch.tensor([0.497, 0.503]))
        assert copy.deepcopy(router).bias.dtype is torch.float32

    def test_resetting_clears_bias_and_counts(self):
        router = SigmoidBias(4, 2)
        router.bias.fill_(3.0)
        router.pending_counts.fill_(3)
        router.reset_parameters()
        assert not router.bias.any()
        assert not router.pending_counts.any()

    def test_the_bias_is_in_the_checkpoint_the_step_in_progress_is_not(self):
        router = SigmoidBias(4, 2)
        router.bias.fill_(0.25)
        router.pending_counts.fill_(7)
        other = SigmoidBias(4, 2)
        other.load_state_dict(router.state_dict())
        assert other.bias.tolist() == [0.25, 0.25]
        assert other.pending_counts.tolist() == [0, 0]

    def test_no_wrapper_may_take_the_counts_for_a_buffer(self):
        """DistributedDataParallel sends the first rank's buffers to all others before each forward."""
        router = SigmoidBias(4, 2)
        assert [name for name, _ in router.named_buffers()] == ["bias"]
        router.to("meta")
        assert {router.pending_counts.device.type, router.bias.device.type} == {"meta"}
        router.to_empty(device="cpu").reset_parameters()
        router.observe(router(torch.randn(3, 4)))
        assert router.pending_counts.sum() == 6
        assert router.double().pending_counts.dtype is torch.int64

    def test_the_load_of_all_ranks_may_be_given(self, monkeypatch):
        model = nn.Sequential(SigmoidBias(4, 2), SigmoidBias(4, 3))
        for router in model:
            router.pending_counts[0] = 9
        others = torch.tensor([0, 20, 0, 20, 1])
        groups = []

        def add(counts, *, group):
            groups.append(group)
            return counts + others

        monkeypatch.setattr("mixtura.routers.sigmoid.sum_over_ranks", add)
        update_biases(model, group="those")
        torch.testing.assert_close(model[0].bias, torch.tensor([1e-3, -1e-3]))
        torch.testing.assert_close(model[1].bias, torch.tensor([1e-3, -1e-3, 1e-3]))
        assert groups == ["those"]
        assert not any(router.pending_counts.any() for router in model)


class TestCounting:
    def layer(self):
        return mx.MoEConfig(dim=4, hidden=4, num_experts=3, k=2, router="sigmoid_bias").build()

    def test_micro_batches_add_up_in_training_only(self):
        layer, x = self.layer(), torch.randn(5, 4)
        layer(x)
        layer(x)
        layer.eval()(x)
        assert layer.router.pending_counts.sum() == 20
        assert torch.equal(layer.router.pending_counts, 2 * layer.router(x).counts_E())

    def test_padding_does_not_count(self):
        layer = self.layer()
        layer(torch.randn(5, 4), mask=torch.tensor([True, False, True, False, False]))
        assert layer.router.pending_counts.sum() == 4
        routing = layer.router(torch.randn(2, 4))
        layer.router.observe(dataclasses.replace(routing, mask_T=torch.tensor([False, False])))
        assert layer.router.pending_counts.sum() == 4

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_recomputation_does_not_count_again(self, use_reentrant):
        layer, x = self.layer(), torch.randn(5, 4, requires_grad=True)
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
        assert layer.router.pending_counts.sum() == 10
