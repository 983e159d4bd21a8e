import pytest
import torch

from mixtura.cli import main, parse
from mixtura.observe.record import record
from mixtura.train.optim import build_optimizer
from mixtura.train.recipes import get_recipe
from mixtura.train.setup import build_model
from mixtura.train.step import evaluate, train_step
from mixtura.train.tasks.language import LanguageConfig
from mixtura.train.tasks.task import autocast
from tests.train.tiny import command, rows

NO_BALANCE = {"model__losses__load_balance": 0.0, "model__losses__z": 0.1}


class Parts:
    """What a step needs, for a tiny configuration."""

    def __init__(self, folder, **options):
        arguments = command(folder, **options)[2:]
        self.config = parse(LanguageConfig, arguments, prog="x", default=get_recipe("lm-tiny"))
        self.task = self.config.prepare()
        self.config = self.task.config
        torch.manual_seed(0)
        self.model = build_model(self.config)
        self.optimizer = build_optimizer(self.model, self.config.optim)
        self.stream = self.task.stream()

    def step(self, number=0):
        return train_step(self.model, self.optimizer, self.stream, task=self.task, step=number)


def trained(folder, **options):
    folder.mkdir()
    assert main(command(folder, **options)) == 0
    return rows(folder / "runs" / "tiny")


@pytest.mark.parametrize("router", [{}, {"model__router": "topk", "model__k": 2}])
def test_two_micro_batches_are_one_batch_of_twice_the_size(tmp_path, router):
    options = {**NO_BALANCE, **router, "steps": 6}
    one = trained(tmp_path / "one", data__batch_size=8, **options)
    two = trained(tmp_path / "two", data__batch_size=4, accumulate=2, **options)
    for a, b in zip(one, two, strict=True):
        assert a["items"] == b["items"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a["aux"] == pytest.approx(b["aux"], rel=1e-5)
        assert a["load"] == b["load"]


@pytest.mark.parametrize(
    "router",
    [
        {"model__router": "noisy_topk", "model__k": 2, "model__losses__load": 0.1},
        {"model__router": "sigmoid_bias", "model__k": 2, "model__router_options": ("jitter", 0.1)},
    ],
)
def test_recomputation_changes_no_number(tmp_path, router):
    options = {**router, "model__layers": 3, "steps": 6}
    kept = trained(tmp_path / "kept", **options)
    for interval in (1, 2):
        assert trained(tmp_path / str(interval), recompute_interval=interval, **options) == kept


def test_bf16_keeps_routers_weights_and_losses_in_fp32(tmp_path):
    parts = Parts(tmp_path, precision="bf16")
    result = parts.step()
    assert {parameter.dtype for parameter in parts.model.parameters()} == {torch.float32}
    assert {state["exp_avg"].dtype for state in parts.optimizer.state.values()} == {torch.float32}
    (records,) = result.log.values()
    assert records[0].routing.logits_TE.dtype == torch.float32
    assert result.total.dtype == result.aux["z"].dtype == torch.float32
    with record(parts.model), autocast(parts.config, torch.device("cpu")):
        assert parts.model(next(parts.stream).inputs_BL).dtype == torch.bfloat16


def test_bf16_learns_what_fp32_learns(tmp_path):
    single = trained(tmp_path / "fp32", steps=20)
    half = trained(tmp_path / "bf16", steps=20, precision="bf16")
    assert [row["loss"] for row in half] != [row["loss"] for row in single]
    for a, b in zip(single, half, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=0.02)


def test_clipping_limits_the_update_and_zero_does_not(tmp_path):
    norms = {}
    for clip in (0.0, 1e-3):
        parts = Parts(tmp_path, optim__grad_clip=clip)
        seen = []
        parts.optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"]
            )
        )
        result = parts.step()
        norms[clip] = torch.stack([grad.norm() for grad in seen]).norm().item()
        assert result.grad_norm.item() == pytest.approx(norms[0.0], rel=1e-4)
        assert all(parameter.grad is None for parameter in parts.model.parameters())
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2)


def test_the_loss_is_per_byte_and_balance_losses_are_told_apart(tmp_path):
    parts = Parts(tmp_path, model__losses__z=0.0, model__losses__load_balance=1.0)
    result = parts.step()
    assert result.items == 64
    assert 50 < result.weight.item() <= 64
    assert (result.total / result.weight).item() == pytest.approx(5.55, abs=0.3)
    assert set(result.aux) == {"load_balance"}
    assert result.lr == pytest.approx(parts.config.optim.lr / 4)


def test_biases_move_once_per_step(tmp_path):
    parts = Parts(
        tmp_path, model__router="sigmoid_bias", model__k=2, model__router_options=("gamma", 0.5), accumulate=3
    )
    parts.step()
    router = parts.model.blocks[0].feed_forward.router
    assert set(router.bias.abs().tolist()) <= {0.0, 0.5}
    assert router.bias.abs().sum() > 0
    assert router.pending_counts.sum() == 0


def test_evaluation_is_the_loss_of_held_out_text(tmp_path):
    parts = Parts(tmp_path)
    before = torch.get_rng_state()
    losses = evaluate(parts.model, parts.task).with_mean()
    assert torch.equal(torch.get_rng_state(), before)
    assert parts.model.training

    ids = torch.tensor(parts.task.corpus.val["poem"][:65].tolist())
    with torch.no_grad():
        logits = parts.model.eval()(ids[:64].view(4, 16))
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:], reduction="sum")
    expected = (nats / parts.task.byte_lengths[ids[1:]].sum()).item()
    assert losses == pytest.approx({"poem": expected, "mean": expected}, rel=1e-5)


def test_the_mean_counts_every_domain_once(tmp_path):
    for name, verses in (("a", 200), ("b", 60)):
        (tmp_path / "texts" / name).mkdir(parents=True)
        lines = [f"{name} verse {i} " * 5 for i in range(verses)]
        (tmp_path / "texts" / name / "poem.txt").write_text("\n\n".join(lines))
    parts = Parts(tmp_path, data__path=tmp_path / "texts")
    losses = evaluate(parts.model, parts.task).with_mean()
    assert losses["mean"] == pytest.approx((losses["a"] + losses["b"]) / 2)
