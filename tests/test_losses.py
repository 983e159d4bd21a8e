"""Losses: values computed by hand, the load against draws, and the two ways a loss enters training."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mixtura as mx
from mixtura.losses import LOSSES, CollectedLosses, apply_losses, attach, importance, load, load_balance, z_loss
from mixtura.routers import NoisyTopK
from tests.routings import make_routing


class TestLoadBalance:
    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_uniform_is_one(self, k):
        choices = [[(t + i) % 4 for i in range(k)] for t in range(8)]
        assert load_balance(make_routing(choices, num_experts=4)).item() == pytest.approx(1)

    def test_collapsed_is_the_number_of_experts(self):
        routing = make_routing([[2]] * 5, num_experts=4, probs=[[0.0, 0.0, 1.0, 0.0]] * 5)
        assert load_balance(routing).item() == pytest.approx(4)

    def test_by_hand_with_two_choices(self):
        # c = (3, 2, 1) of N = 6, mean p = (0.5, 0.3, 0.2): 3 * (3/6 * 0.5 + 2/6 * 0.3 + 1/6 * 0.2)
        probs = [[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.5, 0.1, 0.4]]
        routing = make_routing([[0, 1], [1, 0], [0, 2]], num_experts=3, probs=probs)
        assert load_balance(routing).item() == pytest.approx(3 * (0.25 + 0.1 + 0.2 / 6))

    def test_padding_counts_neither_in_c_nor_in_p(self):
        probs = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]
        padded = make_routing([[0], [1], [1]], num_experts=2, probs=probs, mask=[True, True, False])
        short = make_routing([[0], [1]], num_experts=2, probs=probs[:2])
        assert load_balance(padded).item() == pytest.approx(load_balance(short).item())

    def test_one_expert_and_all_chosen_are_one(self):
        assert load_balance(make_routing([[0]] * 3, num_experts=1)).item() == pytest.approx(1)
        probs = [[0.7, 0.2, 0.1]] * 4
        everyone = make_routing([[0, 1, 2]] * 4, num_experts=3, probs=probs)
        assert load_balance(everyone).item() == pytest.approx(1)

    def test_the_gradient_comes_through_p_alone_and_pulls_towards_the_idle_expert(self):
        logits = torch.zeros(4, 2, requires_grad=True)
        expert_TK = torch.tensor([[0], [0], [0], [1]])
        routing = mx.Routing.from_choices(expert_TK, torch.ones(4, 1), logits_TE=logits, probs_TE=logits.softmax(-1))
        load_balance(routing).backward()
        # d/dl of 2 * (3/4 p0 + 1/4 p1) / 4 at p = 1/2: +-(2 / 4) * (3/4 - 1/4) * p0 p1
        torch.testing.assert_close(logits.grad, torch.tensor([[0.0625, -0.0625]]).expand(4, 2))


class TestZ:
    def test_by_hand(self):
        routing = make_routing([[0], [0]], num_experts=2, logits=[[0.0, 0.0], [1.0, 1.0]])
        expected = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
        assert z_loss(routing).item() == pytest.approx(expected)

    def test_padding_does_not_count(self):
        routing = make_routing([[0], [0]], num_experts=2, logits=[[0.0, 0.0], [9.0, 9.0]], mask=[True, False])
        assert z_loss(routing).item() == pytest.approx(math.log(2) ** 2)


class TestImportance:
    def test_by_hand(self):
        # sums (0.9, 0.5, 0.6): mean 2/3, population variance (0.0544 + 0.0278 + 0.0044) / 3
        routing = make_routing([[0, 1], [2, 0]], num_experts=3, weights=[[0.5, 0.5], [0.6, 0.4]])
        sums = torch.tensor([0.9, 0.5, 0.6], dtype=torch.float64)
        expected = (sums - sums.mean()).square().mean() / sums.mean().square()
        assert importance(routing).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_balanced_is_zero_collapsed_is_e_minus_one(self):
        assert importance(make_routing([[0], [1], [2]], num_experts=3)).item() == 0
        assert importance(make_routing([[1]] * 3, num_experts=3)).item() == pytest.approx(2)

    def test_padding_does_not_count(self):
        routing = make_routing([[0], [1], [1]], num_experts=2, mask=[True, True, False])
        assert importance(routing).item() == 0

    def test_different_numbers_of_choices(self):
        routing = make_routing([[0, 1], [], [1]], num_experts=2, weights=[[0.5, 0.25], [], [0.25]], regular=False)
        assert importance(routing).item() == 0


class TestLoad:
    def test_without_noise_it_is_cv_squared_of_the_counts(self):
        assert load(make_routing([[0], [0], [0], [1]], num_experts=2)).item() == pytest.approx(0.25)

    def test_with_noise_it_sums_the_probabilities(self):
        smooth = torch.tensor([[0.9, 0.3], [0.6, 0.2]])
        routing = make_routing([[0], [0]], num_experts=2, load=smooth)
        assert load(routing).item() == pytest.approx((0.5 / 1.0) ** 2)
        masked = make_routing([[0], [0]], num_experts=2, load=smooth, mask=[True, False])
        assert load(masked).item() == pytest.approx((0.3 / 0.6) ** 2)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_the_probability_is_how_often_fresh_noise_for_that_expert_chooses_it(self, k):
        torch.manual_seed(1)
        router = NoisyTopK(4, num_experts=4, k=k, init_std=0.5)
        nn.init.normal_(router.noise_weight, std=0.5)
        x_TD = torch.randn(3, 4)
        state = torch.get_rng_state()
        routing = router(x_TD)
        torch.set_rng_state(state)
        clean_TE = x_TD @ router.weight.T
        std_TE = nn.functional.softplus(x_TD @ router.noise_weight.T) + 1e-2
        noisy_TE = clean_TE + torch.randn(3, 4) * std_TE  # what the router drew
        assert torch.equal(noisy_TE.topk(k).indices.flatten(), routing.expert_N)
        draws = 20_000
        for e in range(4):
            again_RTE = noisy_TE.expand(draws, 3, 4).clone()
            again_RTE[:, :, e] = clean_TE[:, e] + torch.randn(draws, 3) * std_TE[:, e]
            frequency_T = (again_RTE.topk(k).indices == e).any(-1).float().mean(0)
            torch.testing.assert_close(routing.load_TE[:, e].detach(), frequency_T.detach(), atol=0.015, rtol=0)

    def test_its_gradient_reaches_both_matrices(self):
        router = NoisyTopK(4, num_experts=3, k=1, init_std=0.5)
        load(router(torch.randn(6, 4))).backward()
        assert router.weight.grad.norm() > 0
        assert router.noise_weight.grad.norm() > 0


@pytest.mark.parametrize("name", ["importance", "load"])
def test_one_expert_has_nothing_to_balance(name):
    assert LOSSES[name](make_routing([[0]] * 3, num_experts=1)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_padding_everywhere_gives_a_finite_loss(name):
    probs = [[0.5, 0.5]] * 2
    routing = make_routing([[0], [1]], num_experts=2, probs=probs, mask=[False, False])
    assert LOSSES[name](routing).item() == 0


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


def test_apply_losses_without_tokens_or_coefficients_gives_the_output_itself():
    y = torch.zeros(0, 3)
    assert apply_losses(nn.Identity(), y, make_routing([], num_experts=2), coefficients={"z": 1.0}) is y
    assert apply_losses(nn.Identity(), y, make_routing([[0]], num_experts=2), coefficients={}) is y


def test_nothing_collected_is_zero():
    assert CollectedLosses().total().item() == 0
