"""Roles: each parameter once and in the right group; who learns; routing that stands still."""

import copy

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.models.gpt import GPT, GPTConfig
from mixtura.roles import Role, roles


def make_layer(**options) -> mx.MoE:
    layer = mx.MoEConfig(**{"dim": 6, "hidden": 8, "num_experts": 4, "k": 2, **options}).build()
    nn.init.normal_(layer.router.weight)
    return layer


def named_roles(model):
    found = roles(model)
    return {name: tuple(found[parameter]) for name, parameter in model.named_parameters()}


class Norms(nn.Module):
    """Parameters of every kind that has no decay, some of them with more than one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LayerNorm((2, 3))
        self.batch = nn.BatchNorm1d(3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.scale = nn.Parameter(torch.ones(()))


class TestRoles:
    def test_of_a_layer_with_everything(self):
        layer = make_layer(bias=True, shared_hidden=3, shared_gate="sigmoid", router="noisy_topk")
        assert named_roles(layer) == {
            "router.weight": ("routers", "matrix"),
            "router.noise_weight": ("routers", "matrix"),
            "experts.up_proj": ("experts", "matrix"),
            "experts.down_proj": ("experts", "matrix"),
            "experts.up_bias": ("experts", "vector"),
            "experts.down_bias": ("experts", "vector"),
            "shared.up_proj.weight": ("shared", "matrix"),
            "shared.up_proj.bias": ("shared", "vector"),
            "shared.down_proj.weight": ("shared", "matrix"),
            "shared.down_proj.bias": ("shared", "vector"),
            "shared_gate.weight": ("shared", "matrix"),
        }

    def test_norms_and_biases_are_vectors_whatever_their_shape(self):
        found = named_roles(Norms())
        matrices = {name for name, role in found.items() if role == ("rest", "matrix")}
        assert matrices == {"attention.in_proj_weight", "attention.out_proj.weight"}
        assert {role for name, role in found.items() if name not in matrices} == {("rest", "vector")}

    def test_a_router_inside_an_expert_is_a_router(self):
        layer = mx.MoE(
            router=mx.routers.TopK(6, 2), experts=mx.ModuleExperts([make_layer(shared_hidden=3), nn.Linear(6, 6)])
        )
        found = named_roles(layer)
        assert found["experts.0.router.weight"] == ("routers", "matrix")
        assert found["experts.0.shared.up_proj.weight"] == ("experts", "matrix")
        assert found["experts.1.bias"] == ("experts", "vector")

    def test_tied_weights_are_an_embedding_once(self):
        model = GPT(GPTConfig(dim=16, heads=2, hidden=8, num_experts=4))
        assert roles(model)[model.head.weight] == Role("rest", "embedding")
        untied = GPT(GPTConfig(dim=16, heads=2, hidden=8, num_experts=4, tie_weights=False))
        assert roles(untied)[untied.head.weight] == Role("rest", "matrix")


class TestParamGroups:
    def groups(self, model, **options):
        names = {parameter: name for name, parameter in model.named_parameters()}
        found = {}
        for group in mx.param_groups(model, **{"lr": 1.0, **options}):
            for parameter in group["params"]:
                assert names[parameter] not in found
                found[names[parameter]] = (group["role"], group["lr"], group["weight_decay"])
        assert found.keys() == set(names.values())
        return found

    def test_each_parameter_once_with_the_rate_of_its_part(self):
        model = nn.Sequential(nn.Linear(6, 6), make_layer(bias=True, shared_hidden=3, shared_gate="sigmoid"))
        found = self.groups(model, router_lr=0.1, expert_lr=0.2, shared_lr=0.3, weight_decay=0.5)
        assert found["0.weight"] == ("rest", 1.0, 0.5)
        assert found["0.bias"] == ("rest", 1.0, 0.0)
        assert found["1.router.weight"] == ("routers", 0.1, 0.0)
        assert found["1.experts.up_proj"] == ("experts", 0.2, 0.5)
        assert found["1.experts.up_bias"] == ("experts", 0.2, 0.0)
        assert found["1.shared.up_proj.weight"] == found["1.shared_gate.weight"] == ("shared", 0.3, 0.5)

    def test_a_rate_of_zero_is_a_rate(self):
        found = self.groups(make_layer(), router_lr=0.0)
        assert found["router.weight"] == ("routers", 0.0, 0.0)
        assert found["experts.up_proj"] == ("experts", 1.0, 0.1)

    def test_the_caller_says_what_is_not_decayed(self):
        model = nn.Sequential(nn.Linear(6, 6), make_layer(bias=True))
        assert {decay for _, _, decay in self.groups(model, no_decay=()).values()} == {0.1}
        found = self.groups(model, no_decay="experts")
        assert {name for name, (_, _, decay) in found.items() if decay == 0} == {
            name for name in found if ".experts." in name
        }

    def test_tied_weights_and_frozen_ones_are_there_once(self):
        model = GPT(GPTConfig(dim=16, heads=2, hidden=8, num_experts=4))
        model.embedding.weight.requires_grad_(requires_grad=False)
        assert self.groups(model)["embedding.weight"] == ("rest", 1.0, 0.0)

    def test_an_optimizer_takes_them(self):
        layer = make_layer()
        optimizer = torch.optim.SGD(mx.param_groups(layer, lr=0.5, router_lr=0.0, weight_decay=0.0))
        before = copy.deepcopy(layer.state_dict())
        layer(torch.randn(5, 6)).sum().backward()
        optimizer.step()
        assert torch.equal(layer.router.weight, before["router.weight"])
        torch.testing.assert_close(layer.experts.up_proj, before["experts.up_proj"] - 0.5 * layer.experts.up_proj.grad)

    def test_an_unknown_name(self):
        with pytest.raises(UserError, match=r"expected no_decay among routers, .*, vector, got 'norms'"):
            mx.param_groups(make_layer(), lr=1.0, no_decay=("norms", "routers"))


class TestFreeze:
    @pytest.mark.parametrize(
        ("train", "learning"),
        [
            ("routers", {"1.router.weight"}),
            ("experts", {"1.experts.up_proj", "1.experts.down_proj"}),
            (("routers", "rest"), {"0.weight", "0.bias", "1.router.weight"}),
            ((), set()),
        ],
    )
    def test_only_the_named_parts_learn(self, train, learning):
        model = nn.Sequential(nn.Linear(6, 6), make_layer())
        mx.freeze(model, train=train)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == learning
        mx.freeze(model, train=("routers", "experts", "rest"))
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_parts_that_are_not_there(self):
        with pytest.raises(UserError, match="expected train among routers, experts, shared, rest, got 'gates'"):
            mx.freeze(make_layer(), train="gates")
        with pytest.raises(
            UserError, match="expected a model with parameters of the parts to train, got none of shared"
        ):
            mx.freeze(make_layer(), train=("shared", "routers"))

    def test_a_gate_after_pretrained_experts(self):
        """Frozen experts, the gate trained after them: only the router moves, and it finds who knows what."""
        torch.manual_seed(0)
        experts = mx.ModuleExperts([nn.Linear(2, 2), nn.Linear(2, 2)])
        with torch.no_grad():
            for sign, expert in zip((1.0, -1.0), experts, strict=True):
                expert.weight.copy_(sign * torch.eye(2))
                expert.bias.zero_()
        router = mx.routers.TopK(2, 2, 1, order="softmax_topk")
        layer = mx.MoE(router=router, experts=experts)
        mx.freeze(layer, train="routers")
        before = copy.deepcopy(layer.state_dict())
        optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.5)
        for _ in range(200):
            x = torch.randn(32, 2)
            target = x * torch.sign(x[:, :1])  # the first expert is right where the first number is positive
            optimizer.zero_grad()
            (layer(x) - target).square().mean().backward()
            optimizer.step()
        moved = {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == {"router.weight"}
        x = torch.randn(200, 2)
        right = router(x).expert_N == (x[:, 0] < 0).long()
        assert right.float().mean() > 0.95


class TestFreezeRouting:
    @pytest.mark.parametrize(
        ("router", "options"),
        [("noisy_topk", {}), ("switch", {"jitter": 0.5}), ("sigmoid_bias", {"jitter": 0.5}), ("topk", {"jitter": 0.5})],
    )
    def test_it_chooses_as_in_evaluation_while_the_rest_trains(self, router, options):
        layer = make_layer(router=router, router_options=options, k=None)
        if router == "noisy_topk":
            nn.init.normal_(layer.router.noise_weight, std=3.0)
        x = torch.randn(50, 6)
        expected = layer.eval().router(x)
        model = nn.Sequential(layer).train()
        mx.freeze_routing(model)
        model.train()
        with mx.record(layer) as log:
            layer(x).square().sum().backward()
        assert torch.equal(log[""][0].routing.expert_N, expected.expert_N)
        assert torch.equal(log[""][0].routing.weight_N, expected.weight_N)
        assert all(parameter.grad is None for parameter in layer.router.parameters())
        assert layer.experts.up_proj.grad.any()
        assert layer.training
        if router == "sigmoid_bias":
            assert not layer.router.pending_counts.any()

    def test_the_bias_does_not_walk(self):
        layer = make_layer(router="sigmoid_bias")
        layer(torch.randn(5, 6))
        mx.freeze_routing(layer)
        mx.routers.update_biases(layer)
        assert not layer.router.bias.any()
        mx.unfreeze_routing(layer)
        layer(torch.randn(5, 6))
        mx.routers.update_biases(layer)
        assert layer.router.bias.any()

    def test_unfreezing_gives_back_what_it_took_and_no_more(self):
        layer = make_layer(router="noisy_topk")
        layer.router.noise_weight.requires_grad_(requires_grad=False)
        mx.freeze_routing(layer)
        mx.freeze_routing(layer)  # a second time changes nothing
        assert not any(parameter.requires_grad for parameter in layer.router.parameters())
        mx.unfreeze_routing(layer)
        assert layer.router.weight.requires_grad
        assert not layer.router.noise_weight.requires_grad

    @pytest.mark.parametrize("mode", [True, False])
    def test_the_mode_is_the_models_afterwards(self, mode):
        layer = make_layer().train(not mode)
        mx.freeze_routing(layer)
        layer.train(mode)
        assert not layer.router.training
        mx.unfreeze_routing(layer)
        assert layer.router.training is mode

    def test_a_copy_stays_frozen(self):
        layer = make_layer()
        mx.freeze_routing(layer)
        other = copy.deepcopy(layer).train()
        assert not other.router.training
        mx.unfreeze_routing(other)
        assert other.router.weight.requires_grad
        assert not layer.router.weight.requires_grad

    def test_a_model_without_routers(self):
        with pytest.raises(UserError, match="expected a model with routers, got a Linear without"):
            mx.freeze_routing(nn.Linear(2, 2))
