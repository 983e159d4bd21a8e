"""The two ways in which a loss enters training: attached to the output, or collected."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mixtura as mx
from mixtura import UserError
from mixtura.losses.apply import CollectedLosses, apply_losses, attach, check_losses
from mixtura.losses.balance import load_balance, z_loss
from tests.routings import make_routing


class TestAttach:
    def test_the_output_is_unchanged_and_the_gradients_add_up(self):
        w = torch.tensor([2.0, 3.0], requires_grad=True)
        y = attach(w * 5, w.square().sum())
        assert y.tolist() == [10.0, 15.0]
        y.sum().backward()
        assert w.grad.tolist() == [5 + 4, 5 + 6]

    def test_the_loss_enters_once_however_often_the_output_is_used(self):
        w = torch.tensor(3.0, requires_grad=True)
        y = attach(w * 1, w * w)
        (y + y + y).backward()
        assert w.grad.item() == 3 + 6

    def test_scale(self):
        w = torch.tensor(3.0, requires_grad=True)
        attach(w * 0, w * w, scale=0.5).backward()
        assert w.grad.item() == 3

    def test_it_works_behind_an_output_without_a_graph(self):
        w = torch.tensor(3.0, requires_grad=True)
        attach(torch.zeros(2), w * w).sum().backward()
        assert w.grad.item() == 6

    def test_it_keeps_no_saved_tensor(self):
        kept = []
        w = torch.tensor(3.0, requires_grad=True)
        loss = w * w
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda nothing: nothing):
            attach(w, loss)
        assert not kept


def make_layer(**options) -> mx.MoE:
    options = {"losses": {"load_balance": 0.1, "z": 0.01}, **options}
    layer = mx.MoEConfig(dim=6, hidden=8, num_experts=4, k=2, **options).build()
    nn.init.normal_(layer.router.weight, std=0.5)
    return layer


def task(y: Tensor) -> Tensor:
    return y.square().mean()


def explicit_gradient(layer: nn.Module, x: Tensor, *, scale: float = 1.0) -> Tensor:
    """The gradient of the task plus the losses, times `scale`: the truth that both ways are compared with."""
    layer.zero_grad()
    with mx.collect_losses(layer) as losses:
        y = layer(x)
    (scale * (task(y) + losses.total())).backward()
    return router_gradient(layer)


def router_gradient(layer: nn.Module) -> Tensor:
    (weight,) = (p for name, p in layer.named_parameters() if name.endswith("router.weight"))
    return weight.grad.clone()


class TestTwoWays:
    def test_attached_and_collected_losses_give_the_same_gradient(self):
        layer, x = make_layer(), torch.randn(10, 6)
        expected = explicit_gradient(layer, x)
        layer.zero_grad()
        task(layer(x)).backward()
        torch.testing.assert_close(router_gradient(layer), expected)

    def test_the_collected_values(self):
        layer, x = make_layer(), torch.randn(10, 6)
        with mx.collect_losses(layer) as losses:
            layer(x)
        routing = layer.router(x)
        values = {"load_balance": load_balance(routing), "z": z_loss(routing)}
        assert [(layer_name, name) for layer_name, name, _ in losses.weighted] == [("", "load_balance"), ("", "z")]
        torch.testing.assert_close(losses.total(), 0.1 * values["load_balance"] + 0.01 * values["z"])
        for name, value in losses.means().items():
            torch.testing.assert_close(value, values[name].detach())
            assert not value.requires_grad

    def test_inside_the_block_nothing_is_attached(self):
        layer, x = make_layer(), torch.randn(10, 6)
        plain = make_layer(losses={})
        plain.load_state_dict(layer.state_dict())
        with mx.collect_losses(layer):
            y = layer(x)
        task(y).backward()
        task(plain(x)).backward()
        torch.testing.assert_close(router_gradient(layer), router_gradient(plain))

    def test_trap_a_loss_scale_misses_attached_losses(self):
        layer, x = make_layer(), torch.randn(10, 6)
        expected = explicit_gradient(layer, x)
        layer.zero_grad()
        (1024 * task(layer(x))).backward()  # what a GradScaler does; it divides the gradients by 1024 afterwards
        assert (router_gradient(layer) / 1024 - expected).norm() > 0.1 * expected.norm()
        # The remedy is to collect: then the scale reaches the losses too.
        torch.testing.assert_close(explicit_gradient(layer, x, scale=1024) / 1024, expected)

    def test_trap_accumulation_multiplies_attached_losses(self):
        layer, x, n = make_layer(), torch.randn(10, 6), 4
        expected = explicit_gradient(layer, x)
        task_only = make_layer(losses={})
        task_only.load_state_dict(layer.state_dict())
        task(task_only(x)).backward()
        layer.zero_grad()
        for _ in range(n):
            (task(layer(x)) / n).backward()
        of_losses = expected - router_gradient(task_only)
        torch.testing.assert_close(router_gradient(layer), router_gradient(task_only) + n * of_losses)
        # The remedy: collect, and divide the sum.
        layer.zero_grad()
        for _ in range(n):
            with mx.collect_losses(layer) as losses:
                y = layer(x)
            ((task(y) + losses.total()) / n).backward()
        torch.testing.assert_close(router_gradient(layer), expected)

    def test_no_losses_in_evaluation_or_without_gradients(self):
        layer, x = make_layer(), torch.randn(10, 6)
        with mx.collect_losses(layer) as losses:
            layer.eval()(x)
            with torch.no_grad():
                layer.train()(x)
        assert losses.weighted == losses.raw == []
        assert losses.total().item() == 0
        assert losses.means() == {}


class TestCollectors:
    def test_names_and_means_over_layers(self):
        model, x = nn.Sequential(make_layer(), nn.Tanh(), make_layer(losses={"z": 1.0})), torch.randn(5, 6)
        with mx.collect_losses(model) as losses:
            model(x)
        assert [(layer, name) for layer, name, _ in losses.raw] == [("0", "load_balance"), ("0", "z"), ("2", "z")]
        raw = [value for _, _, value in losses.raw]
        torch.testing.assert_close(losses.means()["z"], (raw[1] + raw[2]) / 2)
        torch.testing.assert_close(losses.total().detach(), 0.1 * raw[0] + 0.01 * raw[1] + raw[2])

    def test_the_layers_of_another_model_still_attach(self):
        mine, other, x = make_layer(), make_layer(), torch.randn(5, 6)
        task(other(x)).backward()
        expected = router_gradient(other)
        other.zero_grad()
        with mx.collect_losses(mine) as losses:
            y = other(x)
        assert losses.weighted == []
        task(y).backward()
        torch.testing.assert_close(router_gradient(other), expected)

    def test_nested_blocks_each_get_their_own_model(self):
        student, teacher, x = make_layer(), make_layer(), torch.randn(5, 6)
        with mx.collect_losses(student) as outer, mx.collect_losses(teacher) as inner:
            student(x)
            teacher(x)
        assert len(outer.weighted) == len(inner.weighted) == 2
        torch.testing.assert_close(outer.means()["z"], z_loss(student.router(x)).detach())
        torch.testing.assert_close(inner.means()["z"], z_loss(teacher.router(x)).detach())

    def test_a_layer_known_to_both_goes_to_the_innermost(self):
        model, x = nn.Sequential(make_layer(), make_layer()), torch.randn(5, 6)
        with mx.collect_losses(model) as outer:
            with mx.collect_losses(model[1]) as inner:
                model(x)
            model[1](x)
        assert [layer for layer, name, _ in outer.raw if name == "z"] == ["0", "1"]
        assert [layer for layer, name, _ in inner.raw if name == "z"] == [""]

    def test_the_block_closes_after_an_error(self):
        layer = make_layer()
        with pytest.raises(ZeroDivisionError), mx.collect_losses(layer) as losses:
            raise ZeroDivisionError
        layer(torch.randn(5, 6))
        assert losses.weighted == []


class Tail(nn.Module):
    """A layer with something behind it that keeps tensors for the backward pass, as most blocks have."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer(x).tanh()).sin()


class TestRecomputation:
    @pytest.fixture
    def model(self) -> Tail:
        return Tail(make_layer())

    @pytest.mark.parametrize("use_reentrant", [True, False])
    @pytest.mark.parametrize("way", ["attach", "collect", "collect around backward"])
    def test_the_gradient_is_that_without_recomputation(self, model, use_reentrant, way):
        x = torch.randn(10, 6, requires_grad=True)
        expected = explicit_gradient(model, x)
        model.zero_grad()
        if way == "attach":
            task(checkpoint(model, x, use_reentrant=use_reentrant)).backward()
        else:
            with mx.collect_losses(model) as losses:
                total = task(checkpoint(model, x, use_reentrant=use_reentrant)) + losses.total()
                if way == "collect around backward":
                    total.backward()
            if way == "collect":
                total.backward()
            assert len(losses.weighted) == (0 if use_reentrant else 2)
        torch.testing.assert_close(router_gradient(model), expected)


def test_without_coefficients_the_output_itself_is_given():
    y = torch.zeros(0, 3)
    assert apply_losses(nn.Identity(), y, make_routing([[0]], num_experts=2), coefficients={}) is y


def test_without_tokens_only_the_losses_of_parameters_act():
    layer = make_layer(losses={"load_balance": 1.0, "z": 1.0, "entropy": 1.0, "l2": 0.5})
    with mx.collect_losses(layer) as losses:
        layer(torch.randn(0, 6))
    raw = {name: value.item() for name, value in losses.means().items()}
    assert raw.pop("l2") == pytest.approx(layer.router.weight.square().sum().item())
    assert raw == {"load_balance": 0, "z": 0, "entropy": 0}


def test_losses_of_both_kinds_stand_beside_one_another():
    layer, x = make_layer(losses={"z": 0.5, "l2": 0.25}), torch.randn(5, 6)
    plain = make_layer(losses={})
    plain.load_state_dict(layer.state_dict())
    task(layer(x)).backward()
    (task(plain(x)) + 0.5 * z_loss(plain.router(x)) + 0.25 * plain.router.weight.square().sum()).backward()
    torch.testing.assert_close(router_gradient(layer), router_gradient(plain))


def test_a_router_without_parameters_has_a_penalty_of_zero():
    class First(mx.routers.Router):
        def forward(self, x_TD):
            probs_TE = x_TD.new_full((len(x_TD), 2), 0.5)
            expert_TK = torch.zeros(len(x_TD), 1, dtype=torch.int64)
            return mx.Routing.from_choices(expert_TK, probs_TE[:, :1], logits_TE=probs_TE, probs_TE=probs_TE)

    router = First(6, 2, gate=nn.Identity())
    layer = mx.MoE(router=router, experts=mx.GroupedMLP(num_experts=2, dim=6, hidden=4), losses={"l1": 1.0})
    with mx.collect_losses(layer) as losses:
        layer(torch.randn(3, 6))
    assert losses.total().item() == 0


def test_unknown_names_are_one_error():
    with pytest.raises(UserError, match=r"expected losses among \['entropy', .*'l1', .*\], got 'a', 'b'"):
        check_losses(["z", "b", "l1", "a"])


def test_nothing_collected_is_zero():
    assert CollectedLosses().total().item() == 0
