"""transformers' own mixtures through the plug-in: outputs and every gradient as in its eager loop."""

import copy
import warnings
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.hub_families import FAMILIES, Family, Sizes, fill, output
from mixtura import kernels
from mixtura.hub import plugin, register
from mixtura.hub.plugin import NAME
from mixtura.kernels import native
from tests.kernels.cases import error

TINY = Sizes(dim=16, hidden=12, num_experts=8, k=2)
# Experts of other layouts, by module and class, and what they read from their config.
LAYOUTS = {
    "transposed, with biases": ("openai_privacy_filter", "OpenAIPrivacyFilterExperts", {}),
    "clamped, halves": ("minimax_m3_vl", "MiniMaxM3VLExperts", {}),
    "a norm behind": ("muse_spark", "MuseSparkExperts", {"hidden_act": "silu"}),
    "gelu": ("mixtral", "MixtralExperts", {"hidden_act": "gelu"}),
    "gelu by tanh": ("mixtral", "MixtralExperts", {"hidden_act": "gelu_pytorch_tanh"}),
    "without a gate": ("nemotron_h", "NemotronHExperts", {"mlp_hidden_act": "relu"}),
}
LOOPED = {
    "squared relu, no gate": ("nemotron_h", "NemotronHExperts", {"mlp_hidden_act": "relu2"}),
    "another limit": ("minimax_m3_vl", "MiniMaxM3VLExperts", {"swiglu_limit": 3.0}),
    "interleaved, another limit": ("gpt_oss", "GptOssExperts", {"swiglu_limit": 3.0}),
    "a norm behind": ("muse_spark", "MuseSparkExperts", {"hidden_act": "tanh"}),
    "learned": ("mixtral", "MixtralExperts", {"hidden_act": "prelu"}),
}
TOLERANCE = 1e-5  # relative, by norm, in fp32


@pytest.fixture(autouse=True)
def registered() -> None:
    register()


def choose(sizes: Sizes, *, tokens: int, skip: bool = False):
    """Tokens, each one's experts and their weights; with `skip` some choices belong to other ranks."""
    logits = torch.randn(tokens, sizes.num_experts)
    weight, index = logits.softmax(-1).topk(sizes.k)
    if skip:
        index = index.masked_fill(torch.rand(index.shape) < 0.4, sizes.num_experts)
    return torch.randn(tokens, sizes.dim), index, weight


def results(module: nn.Module, x, *rest) -> dict[str, torch.Tensor]:
    """The output and the gradient of the input, of the weights, and of every parameter."""
    module.zero_grad(set_to_none=True)
    leaves = [x, *(value for value in rest if value.is_floating_point())]
    leaves = {id(value): value.clone().requires_grad_() for value in leaves}
    y = output(module(*(leaves.get(id(value), value) for value in (x, *rest))))
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(y.dtype))
    gradients = {f"input {i}": leaf.grad for i, leaf in enumerate(leaves.values())}
    named = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"output": y.detach(), **gradients, **named}


def compare(module: nn.Module, config, *inputs, tolerance: float = TOLERANCE) -> None:
    config._experts_implementation = "eager"
    expected = results(module, *inputs)
    config._experts_implementation = NAME
    got = results(module, *inputs)
    # Eager gives no gradient at all where no expert ran; ours gives zeros.
    for name, value in got.items():
        assert error(value, expected.get(name, torch.zeros_like(value))) < tolerance, name
    assert set(expected) <= set(got)


def experts(family: Family, sizes: Sizes = TINY):
    config = family.configure(sizes, "eager")
    return fill(family.get(family.experts)(config), std=0.4), config


def unusual(module: str, name: str, changes: dict):
    D, F, E, _ = TINY
    values = {"hidden_size": D, "moe_hidden_size": D, "intermediate_size": F, "moe_intermediate_size": F}
    values |= {"num_local_experts": E, "n_routed_experts": E, "moe_latent_size": None, "post_norm_eps": 1e-5}
    values |= {"swiglu_alpha": 1.702, "swiglu_limit": 7.0, "_experts_implementation": "eager"}
    config = SimpleNamespace(**{**values, **changes})
    return fill(
        getattr(import_module(f"transformers.models.{module}.modeling_{module}"), name)(config), std=0.4
    ), config


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_blocks(name):
    family = FAMILIES[name]
    config = family.configure(TINY, "eager")
    compare(fill(family.get(family.block)(config), std=0.4), config, torch.randn(2, 9, TINY.dim))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_experts_without_rows_and_skipped_choices(name, tokens):
    module, config = experts(FAMILIES[name])
    module._is_expert_parallel = True
    x, index, weight = choose(TINY, tokens=tokens, skip=name != "gpt-oss")  # its eager loop knows no skipped ones
    compare(module, config, x, index, weight)


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_layouts(name):
    module, config = unusual(*LAYOUTS[name])
    compare(module, config, *choose(TINY, tokens=30))
    assert plugin._form(module).activation is not None


@pytest.mark.parametrize("name", LOOPED)
def test_an_activation_without_a_kernel_runs_in_a_loop_and_says_so(name):
    module, config = unusual(*LOOPED[name])
    inputs = choose(TINY, tokens=3)
    with pytest.warns(UserWarning, match=f"expected an activation of {type(module).__name__} among .* one after"):
        compare(module, config, *inputs)
    compare(module, config, *inputs)  # said once


def test_an_activation_that_changes_is_found_again():
    module, config = experts(FAMILIES["Mixtral"])
    inputs = choose(TINY, tokens=20)
    compare(module, config, *inputs)
    module.act_fn = nn.GELU()
    compare(module, config, *inputs)
    twin = copy.deepcopy(module)
    compare(twin, twin.config, *inputs)


@pytest.mark.parametrize("name", ["Mixtral", "gpt-oss", "Aria"])
def test_bf16_is_as_near_to_the_truth_as_eager(name):
    module, config = experts(FAMILIES[name])
    x, index, weight = choose(TINY, tokens=40)
    module = module.to(torch.bfloat16)
    x, weight = x.bfloat16(), weight.bfloat16()
    runs = {}
    for implementation in ("eager", NAME):
        config._experts_implementation = implementation
        runs[implementation] = results(module, x, index, weight)
    config._experts_implementation = "eager"
    truth = results(module.float(), x.float(), index, weight.float())
    for key, value in truth.items():
        assert runs[NAME][key].dtype is torch.bfloat16
        assert error(runs[NAME][key], value) <= 1.5 * error(runs["eager"][key], value) + 1e-3, key
        assert error(runs[NAME][key], value) < 3e-2, key


@pytest.mark.parametrize("name", ["Mixtral", "gpt-oss"])
def test_under_autocast(name):
    module, config = experts(FAMILIES[name])
    x, index, weight = choose(TINY, tokens=20)
    config._experts_implementation = NAME
    exact = module(x, index, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module(x, index, weight)
    assert rounded.dtype is torch.float32
    assert 1e-5 < error(rounded, exact) < 2e-2


def test_no_tokens():
    module, config = experts(FAMILIES["Mixtral"])
    config._experts_implementation = NAME
    assert module(torch.zeros(0, TINY.dim), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2)).shape == (0, 16)


@pytest.mark.parametrize("name", ["Mixtral", "gpt-oss"])
def test_adapters_on_parameters(name):
    """As PEFT does it for stacked experts: the base frozen, the parameter computed anew from low-rank factors."""

    class LowRank(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.A, self.B = (nn.Parameter(torch.randn(shape[0], *s)) for s in ((shape[1], 2), (2, shape[2])))

        def forward(self, W):
            return W + self.A @ self.B

    module, config = experts(FAMILIES[name])
    module.requires_grad_(False)
    for parameter in ("gate_up_proj", "down_proj"):
        shape = getattr(module, parameter).shape
        nn.utils.parametrize.register_parametrization(module, parameter, LowRank(shape))
    compare(module, config, *choose(TINY, tokens=20))


@pytest.mark.parametrize("transposed", ["gpt-oss", "Aria"])
@pytest.mark.parametrize("kernel", ["cpu", "native"])
def test_transposed_matrices_get_a_gradient_that_lies_as_they_do(transposed, kernel):
    if kernel == "native" and (reason := native.library().reason):
        pytest.skip(f"native kernel: {reason}")
    module, config = experts(FAMILIES[transposed])
    config._experts_implementation = NAME
    x, index, weight = choose(TINY, tokens=20)
    seen = {}
    with kernels.use(kernel):
        y = module(x, index, weight)
        module.gate_up_proj.register_hook(lambda gradient: seen.update(up=gradient.is_contiguous()))
        module.down_proj.register_hook(lambda gradient: seen.update(down=gradient.is_contiguous()))
        y.sum().backward()
    assert seen == {"up": True, "down": True}


MODELS = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 8, "head_dim": 8, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4},
}


def build(kind: str):
    from transformers import AutoConfig

    common = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    common |= {"num_hidden_layers": 2, "vocab_size": 20, "pad_token_id": None, "max_position_embeddings": 32}
    config = AutoConfig.for_model(kind, **{**common, **MODELS[kind]})
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager", attn_implementation="eager")
    return fill(model, std=0.2)


def step(model: nn.Module, ids) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return {"logits": out.logits.detach(), **gradients}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("recompute", [False, True])
def test_whole_models_train_as_in_eager(kind, recompute):
    model = build(kind)
    ids = torch.randint(20, (2, 7))
    expected = step(model, ids)
    model.set_experts_implementation(NAME)
    assert model.config._experts_implementation == NAME
    if recompute:
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
    got = step(model, ids)
    for name, value in expected.items():
        assert error(got[name], value) < 2 * TOLERANCE, name


def test_a_checkpoint_loads_with_it(tmp_path):
    model = build("qwen3_moe").eval()
    ids = torch.randint(20, (1, 7))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation=NAME, attn_implementation="eager")
    assert error(loaded(ids).logits, model(ids).logits) < TOLERANCE


def test_it_says_so_where_transformers_is_missing(monkeypatch):
    import sys

    from mixtura.errors import UserError

    monkeypatch.setitem(sys.modules, "transformers.integrations.moe", None)
    with pytest.raises(UserError, match=r"expected transformers of at least 5\.0.*mixtura\[hub\]"):
        register()


def test_eager_models_stay_eager():
    model = build("mixtral")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register()
    assert model.config._experts_implementation == "eager"


@pytest.mark.parametrize("name", ["Mixtral", "gpt-oss"])
def test_compiled(name):
    module, config = experts(FAMILIES[name])
    inputs = choose(TINY, tokens=20)
    expected = module(*inputs)
    config._experts_implementation = NAME
    with torch.no_grad():
        assert error(torch.compile(module, backend="eager")(*inputs), expected) < TOLERANCE
        # The activation is known by now, and nothing breaks the graph any more.
        assert error(torch.compile(module, backend="eager", fullgraph=True)(*inputs), expected) < TOLERANCE


def test_parameters_that_are_elsewhere_between_forwards(tmp_path):
    """As a device map leaves them that has not room for all: on the meta device until the module is called."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate, which moves parameters about, is missing")
    model = build("qwen3_moe").eval()
    ids = torch.randint(20, (2, 7))
    expected = model(ids).logits
    model.set_experts_implementation(NAME)
    moved = accelerate.disk_offload(model, offload_dir=str(tmp_path), execution_device=torch.device("cpu"))
    assert {p.device.type for p in moved.model.layers[0].mlp.experts.parameters()} == {"meta"}
    with torch.no_grad():
        assert error(moved(ids).logits, expected) < TOLERANCE


def test_interleaved_matrices_are_taken_apart_for_kernels_that_want_halves():
    """What a GPU gets, on a CPU: gate rows first, and the up matrices copied once."""
    module, _ = experts(FAMILIES["gpt-oss"])
    x, index, weight = choose(TINY, tokens=20)
    stacked = plugin._stack(module, dtype=torch.float32, form=plugin._form(module), woven=False)
    assert stacked.activation == "clamped_swiglu"
    assert torch.equal(stacked.up[1, 0], module.gate_up_proj[1, :, 0])
    assert torch.equal(stacked.up[1, TINY.hidden], module.gate_up_proj[1, :, 1])
    rows = plugin._rows(x, index, weight, num_experts=TINY.num_experts)
    got = rows.combine(kernels.grouped_mlp(rows.x_TD, rows.weight_N, rows.index, experts=stacked))
    assert error(got, module(x, index, weight)) < TOLERANCE
