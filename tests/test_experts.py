"""GroupedMLP, MLP and ModuleExperts: equal to one another where they should be, initialisation, dtypes, errors."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mixtura import MLP, Capacity, GroupedMLP, ModuleExperts, MoE, MoEConfig, UserError, kernels, record
from mixtura.dispatch import dispatch
from mixtura.routers import TopK
from tests.routings import make_routing


def make_rows(x_TD, choices=((1, 0), (0, 2), (2, 1), (0, 1)), num_experts=3):
    weights = [[0.75 - 0.1 * t, 0.25 + 0.1 * t] for t in range(len(choices))]
    return dispatch(make_routing([list(c) for c in choices], num_experts=num_experts, weights=weights), x_TD)


def as_modules(experts: GroupedMLP) -> ModuleExperts:
    """The same experts, each an MLP of its own."""
    modules = []
    for e in range(experts.num_experts):
        mlp = MLP(
            dim=experts.dim, hidden=experts.hidden, activation=experts.activation, bias=experts.up_bias is not None
        )
        with torch.no_grad():
            mlp.up_proj.weight.copy_(experts.up_proj[e])
            mlp.down_proj.weight.copy_(experts.down_proj[e])
            if experts.up_bias is not None:
                mlp.up_proj.bias.copy_(experts.up_bias[e])
                mlp.down_proj.bias.copy_(experts.down_bias[e])
        modules.append(mlp)
    return ModuleExperts(modules)


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_stacked_and_separate_experts_agree(activation, bias):
    stacked = GroupedMLP(num_experts=3, dim=4, hidden=6, activation=activation, bias=bias)
    separate = as_modules(stacked)
    x_TD = torch.randn(4, 4)
    rows = make_rows(x_TD)
    outputs = [experts(rows) for experts in (stacked, separate)]
    torch.testing.assert_close(*outputs)
    for y_ND in outputs:
        y_ND.square().sum().backward()
    for e, mlp in enumerate(separate):
        torch.testing.assert_close(stacked.up_proj.grad[e], mlp.up_proj.weight.grad)
        torch.testing.assert_close(stacked.down_proj.grad[e], mlp.down_proj.weight.grad)


class TestGroupedMLP:
    @pytest.mark.parametrize(("activation", "columns"), [("relu", 16), ("swiglu", 32)])
    def test_shapes_and_initial_range(self, activation, columns):
        experts = GroupedMLP(num_experts=5, dim=9, hidden=16, activation=activation, bias=True)
        assert experts.up_proj.shape == (5, columns, 9)
        assert experts.down_proj.shape == (5, 9, 16)
        assert experts.up_bias.shape == (5, columns)
        assert experts.down_bias.shape == (5, 9)
        for parameter, bound in ((experts.up_proj, 1 / 3), (experts.up_bias, 1 / 3), (experts.down_proj, 1 / 4)):
            assert 0.9 * bound < parameter.abs().max() <= bound
        assert not torch.equal(experts.up_proj[0], experts.up_proj[1])

    def test_each_expert_starts_as_linear_layers_do(self):
        experts, linear = GroupedMLP(num_experts=1, dim=50, hidden=60, activation="relu"), nn.Linear(50, 60)
        assert experts.up_proj.std().item() == pytest.approx(linear.weight.std().item(), rel=0.05)

    def test_no_bias_has_no_parameters_for_it(self):
        experts = GroupedMLP(num_experts=2, dim=3, hidden=4)
        assert set(experts.state_dict()) == {"up_proj", "down_proj"}

    def test_autocast_decides_the_dtype(self):
        experts = GroupedMLP(num_experts=3, dim=4, hidden=6, bias=True)
        rows = make_rows(torch.randn(4, 4))
        assert experts(rows).dtype is torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y_ND = experts(rows)
        assert y_ND.dtype is torch.bfloat16
        torch.testing.assert_close(y_ND.float(), experts(rows), rtol=0.03, atol=0.03)
        y_ND.sum().backward()
        assert {p.grad.dtype for p in experts.parameters()} == {torch.float32}

    def test_the_input_decides_the_dtype_without_autocast(self):
        experts = GroupedMLP(num_experts=3, dim=4, hidden=6).bfloat16()
        assert experts(make_rows(torch.randn(4, 4))).dtype is torch.float32
        assert experts(make_rows(torch.randn(4, 4).bfloat16())).dtype is torch.bfloat16

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"num_experts": 0}, "expected num_experts of at least 1, got 0"),
            ({"dim": 0}, "expected dim of at least 1, got 0"),
            ({"hidden": -2}, "expected hidden of at least 1, got -2"),
            ({"activation": "tanh"}, r"expected an activation among \[.*'geglu', .*\], got 'tanh'"),
        ],
    )
    def test_errors_name_the_argument(self, changed, message):
        with pytest.raises(UserError, match=message):
            GroupedMLP(**{"num_experts": 2, "dim": 4, "hidden": 4, **changed})

    def test_print_shows_the_sizes(self):
        assert repr(GroupedMLP(num_experts=2, dim=4, hidden=8)) == (
            "GroupedMLP(num_experts=2, dim=4, hidden=8, activation=swiglu, bias=False)"
        )


class TestMLP:
    def test_any_leading_shape(self):
        mlp, x = MLP(dim=4, hidden=6), torch.randn(2, 3, 4)
        y = mlp(x)
        gate, up = (x @ mlp.up_proj.weight.T).chunk(2, dim=-1)
        torch.testing.assert_close(y, (nn.functional.silu(gate) * up) @ mlp.down_proj.weight.T)

    def test_errors_name_the_argument(self):
        with pytest.raises(UserError, match="expected hidden of at least 1, got 0"):
            MLP(dim=4, hidden=0)
        with pytest.raises(UserError, match="expected an activation among"):
            MLP(dim=4, hidden=4, activation="none")


class TestModuleExperts:
    def test_each_gets_its_rows_as_one_batch_and_the_weight_once(self):
        experts = ModuleExperts([nn.Linear(4, 4), nn.Identity(), nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))])
        rows = make_rows(torch.randn(4, 4))
        expected = torch.cat(
            [expert(x) for expert, x in zip(experts, rows.gather().split(rows.counts_E.tolist()), strict=True)]
        )
        torch.testing.assert_close(experts(rows), expected * rows.weight_N.unsqueeze(-1))

    def test_an_expert_without_rows_is_not_called(self):
        def refuse(*_):
            raise AssertionError

        experts = ModuleExperts([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
        experts[1].register_forward_pre_hook(refuse)
        experts(make_rows(torch.randn(2, 4), choices=((0, 2), (2, 0)))).sum().backward()
        assert experts[1].weight.grad is None
        assert experts[0].weight.grad is not None

    def test_no_rows_at_all(self):
        experts = ModuleExperts([nn.Linear(4, 4)])
        assert experts(make_rows(torch.randn(0, 4), choices=(), num_experts=1)).shape == (0, 4)

    def test_empty_experts_do_not_change_the_dtype(self):
        experts = ModuleExperts([nn.Linear(4, 4) for _ in range(3)])
        rows = make_rows(torch.randn(2, 4), choices=((0, 2), (2, 0)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert experts(rows).dtype is torch.bfloat16

    def test_frozen_experts_pass_the_gradient_on(self):
        experts = ModuleExperts([nn.Linear(4, 4) for _ in range(3)]).requires_grad_(requires_grad=False)
        experts[2].requires_grad_()
        x_TD = torch.randn(4, 4, requires_grad=True)
        experts(make_rows(x_TD)).sum().backward()
        assert [expert.weight.grad is not None for expert in experts] == [False, False, True]
        assert x_TD.grad.any()

    def test_none_at_all(self):
        with pytest.raises(UserError, match="expected at least one expert, got none"):
            ModuleExperts([])


def dropping(**options) -> MoE:
    layer = MoEConfig(**{"dim": 6, "hidden": 8, "num_experts": 4, "k": 2, "dropout": 0.5, **options}).build()
    nn.init.normal_(layer.router.weight, std=0.7)
    return layer


class TestExpertDropout:
    """Dropout inside the experts, seen from the layer."""

    def test_training_keeps_the_mean_and_evaluation_drops_nothing(self):
        layer, x = dropping(), torch.randn(5, 6)
        plain = dropping(dropout=0.0)
        plain.load_state_dict(layer.state_dict())
        assert torch.equal(layer.eval()(x), plain(x))
        layer.train()
        draws = torch.stack([layer(x) for _ in range(4000)])
        spread = draws.std(0) / 4000**0.5
        assert ((draws.mean(0) - plain(x)).abs() < 5 * spread).all()
        assert (spread > 0).all()

    def test_a_seed_decides_what_is_dropped(self):
        layer, x = dropping(), torch.randn(5, 6)
        outputs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outputs.append(layer(x))
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("capacity_factor", [None, 1.0])
    def test_output_and_gradients_are_the_loops_with_the_same_mask(self, bias, capacity_factor):
        layer = dropping(dropout=0.4, bias=bias, capacity_factor=capacity_factor, num_experts=5)
        x, results = torch.randn(11, 6, requires_grad=True), []
        for kernel in ("cpu", "reference"):
            torch.manual_seed(5)
            with kernels.use(kernel):
                y = layer(x)
                results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
        for fast, loop in zip(*results, strict=True):
            torch.testing.assert_close(fast, loop)

    def test_by_hand_the_rest_is_scaled_up(self):
        layer, x = dropping(dropout=0.75, activation="relu", num_experts=1, k=1, router="switch"), torch.randn(3, 6)
        torch.manual_seed(5)
        keep_NF = torch.empty(3, 8).bernoulli_(0.25)
        torch.manual_seed(5)
        hidden_NF = (x @ layer.experts.up_proj[0].T).relu() * keep_NF * 4
        torch.testing.assert_close(layer(x), hidden_NF @ layer.experts.down_proj[0].T)

    def test_recomputation_drops_the_same(self):
        layer, x, grads = dropping(), torch.randn(9, 6, requires_grad=True), []
        for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
            torch.manual_seed(3)
            layer.zero_grad()
            run(x).square().sum().backward()
            grads.append(layer.experts.up_proj.grad.clone())
        assert torch.equal(*grads)


class Sequences(nn.Module):
    """An expert for samples (n, L, D) that gives its module's sequences back."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        if isinstance(self.module, nn.Conv2d):
            return self.module(x.unsqueeze(1)).squeeze(1)
        y = self.module(x)
        return y[0] if isinstance(y, tuple) else y


def make_mixed() -> ModuleExperts:
    """An MLP, a convolution, a recurrent network and a Transformer block, each over samples of (5, 6)."""
    return ModuleExperts(
        [
            Sequences(MLP(dim=6, hidden=7)),
            Sequences(nn.Conv2d(1, 1, 3, padding=1)),
            Sequences(nn.GRU(6, 6, batch_first=True)),
            Sequences(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)),
        ],
        row_shape=(5, 6),
    )


class TestMixedExperts:
    """Experts of different kinds in one layer, with whole samples routed between them."""

    @pytest.fixture
    def layer(self):
        layer = MoE(router=TopK(30, num_experts=4, k=2), experts=make_mixed())
        nn.init.normal_(layer.router.weight)
        return layer

    @staticmethod
    def loop(layer, x):
        """Sample by sample."""
        routing = layer.router(x.flatten(-2))
        y = [torch.zeros(5, 6) for _ in x]
        for token, expert, weight in zip(
            routing.token_N.tolist(), routing.expert_N.tolist(), routing.weight_N, strict=True
        ):
            y[token] = y[token] + weight * layer.experts[expert](x[token : token + 1])[0]
        return torch.stack(y)

    @pytest.mark.parametrize("samples", [1, 9])
    def test_output_and_gradients_are_the_loops(self, layer, samples):
        x, seen = torch.randn(samples, 5, 6, requires_grad=True), []
        weight = torch.randn(samples, 5, 6)
        for y in (layer(x), self.loop(layer, x)):
            grads = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()], materialize_grads=True)
            seen.append([y, *grads])
        for got, expected in zip(*seen, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)

    def test_each_kind_learns(self, layer):
        layer(torch.randn(40, 5, 6)).square().sum().backward()
        for expert in layer.experts:
            assert all(parameter.grad is not None for parameter in expert.parameters())

    def test_any_leading_shape_and_no_samples(self, layer):
        x = torch.randn(2, 3, 5, 6)
        torch.testing.assert_close(layer(x).flatten(0, 1), layer(x.flatten(0, 1)))
        assert layer(torch.randn(0, 5, 6)).shape == (0, 5, 6)
        with pytest.raises(UserError, match=r"expected x of shape \(\.\.\., 5, 6\), got shape \(2, 6, 5\)"):
            layer(torch.randn(2, 6, 5))

    def test_padding_and_capacity(self, layer):
        layer.capacity = Capacity(fixed=2)
        x, mask = torch.randn(8, 5, 6), torch.tensor([True] * 6 + [False] * 2)
        with record(layer) as log:
            y = layer(x, mask=mask)
        assert log[""][0].kept_E.max() <= 2
        assert not y[~mask].any()
