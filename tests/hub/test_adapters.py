"""Adapters in PEFT's files: what we write PEFT reads, and the other way round, with equal logits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.hub.adapters import CONFIG, WEIGHTS, load_adapters, save_adapters
from tests.hub.tiny import MODELS, logits, reread, stored
from tests.kernels.cases import error
from tests.surgery.layers import build

# What PEFT itself calls in transformers and in itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
IDS = torch.arange(34).view(2, 17) % 40
NAMES = ["Mixtral", "Qwen2-MoE", "OLMoE", "DeepSeek-V3", "GLM-4-MoE", "Granite-MoE", "gpt-oss"]


def adapted(folder, *, targets):
    """A model read from a folder, with adapters that have learned something."""
    model = mx.hub.load(folder)
    mx.surgery.add_lora(model, rank=3, alpha=6.0, targets=targets)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=NAMES)
def kind(request, tmp_path):
    """A tiny model's folder, its family, and what can be adapted: gpt-oss's router has a bias, and so no adapter."""
    folder, _ = stored(tmp_path / "theirs", request.param)
    name = MODELS[request.param][0]
    return folder, name, "experts" if name == "gpt_oss" else ("experts", "routers")


def test_peft_reads_what_we_write(kind, tmp_path):
    peft = pytest.importorskip("peft", reason="the package peft is missing")
    folder, name, targets = kind
    ours = adapted(folder, targets=targets)
    save_adapters(ours, tmp_path / "adapters", format=name)
    theirs = peft.PeftModel.from_pretrained(reread(folder), tmp_path / "adapters").eval()
    assert error(logits(ours, IDS), logits(theirs, IDS)) < 1e-5
    assert error(logits(ours, IDS), logits(mx.hub.load(folder), IDS)) > 1e-2


def test_we_read_what_peft_writes(kind, tmp_path):
    peft = pytest.importorskip("peft", reason="the package peft is missing")
    folder, name, targets = kind
    save_adapters(adapted(folder, targets=targets), tmp_path / "names", format=name)
    wanted = json.loads((tmp_path / "names" / CONFIG).read_text())["target_parameters"]
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=[], target_parameters=wanted, use_rslora=True, init_lora_weights=False
    )
    theirs = peft.get_peft_model(reread(folder), config).eval()
    theirs.save_pretrained(tmp_path / "adapters")
    ours = mx.hub.load(folder)
    load_adapters(ours, tmp_path / "adapters", format=name)
    assert error(logits(ours, IDS), logits(theirs, IDS)) < 1e-5
    mx.surgery.merge_lora(ours)
    assert error(logits(ours, IDS), logits(theirs, IDS)) < 1e-5


@pytest.mark.parametrize("targets", ["experts", "routers", ("experts", "routers")])
def test_under_the_models_own_names(tmp_path, targets):
    layer, twin = build("topk"), build("topk")
    twin.load_state_dict(layer.state_dict())
    mx.surgery.add_lora(layer, rank=2, targets=targets)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    save_adapters(layer, tmp_path)
    load_adapters(twin, tmp_path)
    x = torch.randn(7, 8)
    assert torch.equal(twin(x), layer(x))


def test_one_experts_matrices_by_hand(tmp_path):
    layer = build("topk", activation="relu")
    mx.surgery.add_lora(layer, rank=2, targets="experts")
    nn.init.normal_(layer.experts.up_b)
    save_adapters(layer, tmp_path)
    held, prefix = load_file(tmp_path / WEIGHTS), "base_model.model.experts"
    E, F, D = layer.experts.base.up_proj.shape
    a, b = held[f"{prefix}.base_layer.lora_A.weight"], held[f"{prefix}.base_layer.lora_B.weight"]
    assert (a.shape, b.shape) == ((2 * E, D), (F, 2 * E))
    whole = torch.einsum("okx,xki->xoi", b.view(F, 2, E), a.view(E, 2, D))
    torch.testing.assert_close(whole, layer.experts.up_b @ layer.experts.up_a)
    assert held[f"{prefix}.lora_A.weight"].shape == (2 * E, F)


def test_what_does_not_fit_is_refused(tmp_path):
    layer, other = build("topk"), build("topk", num_experts=5)
    mx.surgery.add_lora(layer, rank=2)
    save_adapters(layer, tmp_path)
    x = torch.randn(4, 8)
    before = other(x)
    with pytest.raises(UserError, match=r"this model's mixtures .*model\.experts\.base_layer\.lora_A.* and 2 more"):
        load_adapters(other, tmp_path)
    torch.testing.assert_close(other(x), before, rtol=0, atol=1e-6)
    config = json.loads((tmp_path / CONFIG).read_text())
    for change, match in (
        ({"use_dora": True}, "expected plain LoRA adapters, got use_dora=True"),
        ({"target_modules": ["q_proj"]}, r"experts and routers alone .* got target_modules=\['q_proj'\]"),
        ({"peft_type": "IA3"}, "expected adapters of type LORA, got IA3"),
    ):
        (tmp_path / CONFIG).write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=match):
            load_adapters(build("topk"), tmp_path)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(UserError, match="a config of LoRA adapters"):
        load_adapters(build("topk"), tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="expected a whole safetensors file"):
        load_adapters(build("topk"), tmp_path)
    save_file({"base_model.model.experts.lora_A.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="got a difference"):
        load_adapters(build("topk"), tmp_path)
    with pytest.raises(UserError, match="a model with adapters, got a MoE without"):
        save_adapters(build("topk"), tmp_path)
