"""The layer as a drop-in: shapes, dtypes, capacity, shared expert, masks, checkpoints, copies, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mixtura as mx
from mixtura import UserError


def make_layer(**options) -> mx.MoE:
    layer = mx.MoEConfig(**{"dim": 6, "hidden": 8, "num_experts": 4, "k": 2, **options}).build()
    if layer.router.weight is not None:
        nn.init.normal_(layer.router.weight, std=0.7)
    return layer


def of_router(name: str, **options) -> dict:
    """Options of a recipe with this router, and as many choices as it can have."""
    return {"router": name, "k": 2 if mx.routers.ROUTERS[name].takes_k else None, **options}


def run(layer: mx.MoE, x: torch.Tensor) -> torch.Tensor:
    """The output for any router: under a fixed seed, and with a context where one is needed."""
    torch.manual_seed(1)
    return layer(x, context=torch.arange(len(x))) if layer.router.needs_context else layer(x)


def kept(layer: mx.MoE, x: torch.Tensor, **arguments) -> list[int]:
    """Rows that each expert worked on."""
    with mx.record(layer) as log:
        layer(x, **arguments)
    return log[""][0].kept_E.tolist()


def send_all_to(layer: mx.MoE, expert: int) -> None:
    """Make the router choose one expert for tokens whose first number is positive."""
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[expert, 0] = 1.0


class TestShapes:
    @pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6), (2, 0, 6)])
    def test_any_leading_shape(self, shape):
        layer, x = make_layer(), torch.randn(shape)
        y = layer(x)
        assert y.shape == x.shape
        torch.testing.assert_close(y.reshape(-1, 6), layer(x.reshape(-1, 6)))

    def test_memory_in_another_order(self):
        layer, x = make_layer(), torch.randn(6, 3, 2).transpose(0, 2)
        torch.testing.assert_close(layer(x), layer(x.contiguous()))

    def test_no_tokens_have_gradients_of_zero(self):
        layer = make_layer(losses={"load_balance": 1.0, "z": 1.0}, shared_hidden=4, capacity_factor=1.0)
        x = torch.randn(0, 6, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.shape == (0, 6)
        assert all(p.grad is None or not p.grad.any() for p in layer.parameters())


class TestDtypes:
    def test_a_bf16_model_routes_in_fp32_and_answers_in_bf16(self):
        layer = make_layer(shared_hidden=4, shared_gate="sigmoid", losses={"load_balance": 1.0}).bfloat16()
        x = torch.randn(5, 6).bfloat16().requires_grad_()
        with mx.record(layer) as log:
            y = layer(x)
        assert y.dtype is torch.bfloat16
        routing = log[""][0].routing
        assert {routing.logits_TE.dtype, routing.probs_TE.dtype, routing.weight_N.dtype} == {torch.float32}
        y.sum().backward()
        assert x.grad.dtype is torch.bfloat16
        assert all(p.grad.isfinite().all() for p in layer.parameters())

    @pytest.mark.parametrize("experts", ["grouped", "modules"])
    def test_autocast_keeps_the_routing_and_the_inputs_dtype(self, experts):
        layer, x = make_layer(shared_hidden=4, shared_gate="sigmoid"), torch.randn(7, 6)
        if experts == "modules":
            layer.experts = mx.ModuleExperts([nn.Linear(6, 6) for _ in range(4)])
        with mx.record(layer) as log:
            exact = layer(x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = layer(x)
        assert y.dtype is torch.float32
        torch.testing.assert_close(y, exact, rtol=0.05, atol=0.02)
        first, second = (record.routing for record in log[""])
        assert torch.equal(first.logits_TE, second.logits_TE)
        assert torch.equal(first.weight_N, second.weight_N)


class TestCapacity:
    def test_dropless_keeps_all(self):
        layer = make_layer(k=1, router="switch")
        send_all_to(layer, 2)
        assert kept(layer, torch.rand(12, 6)) == [0, 0, 12, 0]

    def test_training_and_evaluation_have_their_own(self):
        layer = make_layer(k=1, router="switch", capacity_factor=1.0, eval_capacity=mx.Capacity(factor=2.0))
        send_all_to(layer, 2)
        x = torch.rand(12, 6)
        assert kept(layer, x) == [0, 0, 3, 0]
        assert kept(layer.eval(), x) == [0, 0, 6, 0]

    def test_evaluation_is_as_training_unless_said(self):
        layer = make_layer(k=1, router="switch", capacity_factor=1.0).eval()
        send_all_to(layer, 2)
        assert kept(layer, torch.rand(12, 6)) == [0, 0, 3, 0]

    def test_multiple(self):
        layer = make_layer(k=1, router="switch", capacity=mx.Capacity(factor=1.0, multiple_of=4))
        send_all_to(layer, 0)
        assert kept(layer, torch.rand(12, 6)) == [4, 0, 0, 0]
        assert kept(layer, torch.rand(20, 6)) == [8, 0, 0, 0]

    def test_k_choices_have_k_times_the_room(self):
        layer = make_layer(k=2, capacity_factor=1.0)
        send_all_to(layer, 1)
        assert kept(layer, torch.rand(12, 6))[1] == 6

    def test_dropped_tokens_give_zeros(self):
        layer = make_layer(k=1, router="switch", capacity_factor=1.0)
        send_all_to(layer, 2)
        y = layer(torch.rand(12, 6))
        assert y[:3].any(1).all()
        assert not y[3:].any()

    def test_a_router_with_other_numbers_of_choices_shares_its_own_assignments(self):
        class Everyone(mx.routers.Router):
            """Token t goes to its t + 1 first experts."""

            def forward(self, x_TD):
                T, logits_TE = x_TD.shape[0], self.logits(x_TD)
                token_N = torch.arange(T).repeat_interleave(torch.arange(1, T + 1))
                expert_N = torch.cat([torch.arange(t + 1) for t in range(T)])
                return mx.Routing(
                    token_N=token_N,
                    expert_N=expert_N,
                    weight_N=torch.ones(len(token_N)),
                    logits_TE=logits_TE,
                    probs_TE=logits_TE.softmax(-1),
                )

        layer = mx.MoE(
            router=Everyone(6, 4), experts=mx.GroupedMLP(num_experts=4, dim=6, hidden=8), capacity_factor=1.0
        )
        # 10 assignments, 2.5 for each expert: 3 rows; the demands are 4, 3, 2, 1.
        assert kept(layer, torch.randn(4, 6)) == [3, 3, 2, 1]


class TestPriorityAndMask:
    def test_the_callers_priority_decides_who_is_kept(self):
        layer = make_layer(k=1, router="switch", capacity_factor=1.0, policy="priority")
        send_all_to(layer, 2)
        x = torch.rand(2, 4, 6)
        urgency = torch.tensor([[0.0, 5.0, 1.0, 2.0], [9.0, 3.0, 4.0, 6.0]])
        y = layer(x, priority=urgency)
        assert y.any(-1).tolist() == [[False, False, False, False], [True, False, False, True]]

    def test_without_it_the_most_certain_are_kept(self):
        layer = make_layer(k=1, router="switch", capacity_factor=1.0, policy="priority")
        send_all_to(layer, 2)
        x = torch.zeros(8, 6)
        x[:, 0] = torch.tensor([1.0, 8.0, 2.0, 3.0, 4.0, 9.0, 5.0, 6.0])
        x[:, 1] = 1.0
        assert layer(x).any(-1).nonzero().flatten().tolist() == [1, 5]

    def test_padding_gives_zeros_and_changes_nothing_else(self):
        layer = make_layer(losses={"load_balance": 1.0, "z": 1.0, "importance": 1.0, "load": 1.0})
        x, mask = torch.randn(2, 3, 6), torch.tensor([[True, True, False], [True, False, False]])
        with mx.collect_losses(layer) as padded:
            y = layer(x, mask=mask)
        with mx.collect_losses(layer) as short:
            expected = layer(x[mask])
        torch.testing.assert_close(y[mask], expected)
        assert not y[~mask].any()
        for name, value in short.means().items():
            torch.testing.assert_close(padded.means()[name], value)

    def test_padding_still_passes_the_shared_expert(self):
        layer = make_layer(shared_hidden=4)
        x, mask = torch.randn(3, 6), torch.tensor([True, False, True])
        torch.testing.assert_close(layer(x, mask=mask)[1], layer.shared(x)[1])


class TestShared:
    def test_it_is_added_for_every_token(self):
        layer, x = make_layer(shared_hidden=4), torch.randn(5, 6)
        alone = copy.deepcopy(layer)
        alone.shared = None
        torch.testing.assert_close(layer(x), alone(x) + layer.shared(x))

    def test_its_gate(self):
        layer, x = make_layer(shared_hidden=4, shared_gate="sigmoid"), torch.randn(5, 6)
        alone = copy.deepcopy(layer)
        alone.shared = None
        gate = torch.sigmoid(x @ layer.shared_gate.weight.T)
        torch.testing.assert_close(layer(x), alone(x) + gate * layer.shared(x))
        layer(x).sum().backward()
        assert layer.shared_gate.weight.grad.norm() > 0

    def test_residual_mixture_weights_both_by_a_softmax(self):
        layer, x = make_layer(shared_hidden=4, shared_gate="softmax"), torch.randn(5, 6)
        alone = copy.deepcopy(layer)
        alone.shared = None
        share = (x @ layer.shared_gate.weight.T).softmax(-1)
        torch.testing.assert_close(layer(x), share[:, :1] * alone(x) + share[:, 1:] * layer.shared(x))
        layer(x).sum().backward()
        assert layer.shared_gate.weight.grad.norm() > 0


class TestDropIn:
    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_activation_recomputation_changes_no_gradient(self, use_reentrant):
        layer = make_layer(losses={"load_balance": 0.1, "z": 0.1}, capacity_factor=1.0, shared_hidden=4)
        x = torch.randn(9, 6, requires_grad=True)
        grads = []
        for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)):
            layer.zero_grad()
            run(x).square().sum().backward()
            grads.append([x.grad.clone(), *(p.grad.clone() for p in layer.parameters())])
            x.grad = None
        for plain, recomputed in zip(*grads, strict=True):
            torch.testing.assert_close(plain, recomputed)

    @pytest.mark.parametrize("router", ["noisy_topk", "switch"])
    def test_recomputation_draws_the_same_noise(self, router):
        options = {"jitter": 0.1}
        layer = make_layer(router=router, router_options=options, k=1, losses={"load": 0.1})
        x = torch.randn(9, 6, requires_grad=True)
        grads = []
        for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
            torch.manual_seed(3)
            layer.zero_grad()
            run(x).square().sum().backward()
            grads.append(layer.router.weight.grad.clone())
        torch.testing.assert_close(*grads)

    @pytest.mark.parametrize("router", mx.routers.ROUTERS)
    def test_copies_and_checkpoints_give_the_same_output(self, router):
        options = of_router(router, shared_hidden=4, shared_gate="sigmoid", bias=True)
        layer, other, x = make_layer(**options).eval(), make_layer(**options).eval(), torch.randn(5, 6)
        assert not torch.allclose(run(layer, x), run(other, x))
        other.load_state_dict(layer.state_dict())
        assert torch.equal(run(layer, x), run(other, x))
        assert torch.equal(run(layer, x), run(copy.deepcopy(layer), x))

    def test_the_state_dict_has_these_keys(self):
        assert list(make_layer(shared_hidden=4, shared_gate="sigmoid", router="sigmoid_bias").state_dict()) == [
            "router.weight",
            "router.bias",
            "experts.up_proj",
            "experts.down_proj",
            "shared.up_proj.weight",
            "shared.down_proj.weight",
            "shared_gate.weight",
        ]

    @pytest.mark.parametrize("router", mx.routers.ROUTERS)
    def test_made_on_meta_and_filled_later(self, router):
        options = of_router(router, bias=True, shared_hidden=4)
        with torch.device("meta"):
            layer = mx.MoEConfig(dim=64, hidden=64, num_experts=4, **options).build()
        assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
        layer.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in layer.state_dict().values():
                tensor.fill_(torch.nan if tensor.is_floating_point() else 77)  # what memory may hold
        for module in layer.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        twin = mx.MoEConfig(dim=64, hidden=64, num_experts=4, **options).build()
        for (name, tensor), expected in zip(layer.state_dict().items(), twin.state_dict().values(), strict=True):
            assert tensor.dtype == expected.dtype, name
            assert tensor.isfinite().all(), name
            if tensor.numel() > 100:
                assert tensor.float().std().item() == pytest.approx(expected.float().std().item(), rel=0.3), name
        assert run(layer, torch.randn(3, 64)).isfinite().all()

    def test_print_is_readable(self):
        layer = mx.MoEConfig(
            dim=4, hidden=8, num_experts=2, k=2, shared_hidden=3, losses={"z": 0.001}, capacity_factor=1.5
        ).build()
        assert repr(layer) == "\n".join(
            [
                "MoE(",
                "  capacity=Capacity(factor=1.5), policy=drop, pooling=sum, losses={'z': 0.001}",
                "  (router): TopK(dim=4, num_experts=2, k=2)",
                "  (experts): GroupedMLP(num_experts=2, dim=4, hidden=8, activation=swiglu, bias=False)",
                "  (shared): MLP(",
                "    (up_proj): Linear(in_features=4, out_features=6, bias=False)",
                "    (down_proj): Linear(in_features=3, out_features=4, bias=False)",
                "  )",
                ")",
            ]
        )


class TestErrors:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"k": 5}, "expected 1 <= k <= num_experts, got k=5 with num_experts=4; choose a smaller k"),
            ({"router": "best"}, r"expected a router among \[.*'noisy_topk', .*\], got 'best'"),
            ({"router": "switch"}, "expected k=1 with router='switch', got k=2; leave k out"),
            ({"capacity_factor": 0.0}, "expected capacity_factor above 0, or None for dropless, got 0.0"),
            ({"policy": "random"}, "expected a policy among drop, priority.*, got 'random'"),
            ({"shared_gate": "sigmoid"}, "beside a shared module, got 'sigmoid' with shared=None"),
            ({"shared_gate": "tanh", "shared_hidden": 3}, "expected shared_gate None, .*, got 'tanh' with shared=MLP"),
            ({"pooling": "median"}, "expected a pooling among sum, highest, vote, got 'median'"),
            ({"dropout": 1.0}, "expected 0 <= dropout < 1, got 1.0"),
            ({"capacity_factor": 1.0, "capacity": mx.Capacity()}, "expected capacity_factor or capacity, got both"),
            ({"losses": {"z": 1.0, "entropy2": 1.0}}, r"expected losses among \['entropy', .*\], got 'entropy2'"),
            ({"hidden": 0}, "expected hidden of at least 1, got 0"),
            ({"activation": "tanh"}, "expected an activation among"),
        ],
    )
    def test_of_the_recipe(self, changed, message):
        with pytest.raises(UserError, match=message):
            make_layer(**changed)

    def test_parts_that_do_not_fit(self):
        router = mx.routers.TopK(6, 4)
        with pytest.raises(UserError, match="expected experts for the router's 4, got num_experts=3"):
            mx.MoE(router=router, experts=mx.GroupedMLP(num_experts=3, dim=6, hidden=8))
        with pytest.raises(UserError, match="expected router and experts of one width, got dim=6 and dim=5"):
            mx.MoE(router=router, experts=mx.GroupedMLP(num_experts=4, dim=5, hidden=8))
        with pytest.raises(UserError, match="got num_experts=None"):
            mx.MoE(router=router, experts=nn.Linear(6, 6))

    def test_of_the_input(self):
        layer, x = make_layer(), torch.randn(2, 3, 6)
        with pytest.raises(UserError, match=r"expected x of width D=6, got shape \(2, 3, 5\)"):
            layer(torch.randn(2, 3, 5))
        with pytest.raises(UserError, match=r"expected mask with one value per token, of shape \(2, 3\), got \(2,\)"):
            layer(x, mask=torch.ones(2, dtype=torch.bool))
        with pytest.raises(
            UserError, match=r"expected mask of dtype torch.bool .*, got torch.int64; use mask.bool\(\)"
        ):
            layer(x, mask=torch.ones(2, 3, dtype=torch.int64))
        with pytest.raises(
            UserError, match=r"expected priority with one value per token, of shape \(2, 3\), got \(6,\)"
        ):
            layer(x, priority=torch.zeros(6))


def test_losses_leave_evaluation_alone():
    layer, x = make_layer(losses={"z": 1.0}), torch.randn(5, 6)
    layer.eval()(x).sum().backward()
    plain = copy.deepcopy(layer)
    plain.losses = {}
    plain.zero_grad()
    plain.train()(x).sum().backward()
    torch.testing.assert_close(layer.router.weight.grad, plain.router.weight.grad)
    layer.zero_grad()
    layer.train()(x).sum().backward()
    assert not math.isclose((layer.router.weight.grad - plain.router.weight.grad).norm().item(), 0, abs_tol=1e-4)
