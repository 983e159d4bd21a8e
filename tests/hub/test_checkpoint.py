"""Checkpoints both ways: equal logits, and one clear error for each way in which a folder can be wrong."""

import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mixtura as mx
from mixtura.errors import UserError
from mixtura.hub.files import INDEX, SINGLE, read_tensors
from mixtura.hub.probe import FILE
from mixtura.models.causal import Causal, CausalConfig
from tests.hub.tiny import MODELS, logits, reread, stored
from tests.kernels.cases import error

IDS = torch.arange(34).view(2, 17) % 40
every = pytest.mark.parametrize("name", MODELS)


@every
def test_logits_are_theirs(name, tmp_path):
    folder, theirs = stored(tmp_path / "theirs", name)
    assert error(logits(mx.hub.load(folder), IDS), logits(theirs, IDS)) < 1e-5


@every
def test_what_we_write_they_read(name, tmp_path):
    folder, theirs = stored(tmp_path / "theirs", name, max_shard_size="8KB")
    assert (folder / INDEX).exists()
    model = mx.hub.load(folder)
    written = mx.hub.save(model, tmp_path / "ours", format=MODELS[name][0], max_shard_bytes=9_000)
    assert (written / INDEX).exists()
    assert error(logits(reread(written), IDS), logits(theirs, IDS)) < 1e-5
    assert error(logits(mx.hub.load(written), IDS), logits(theirs, IDS)) < 1e-5
    # Not a tensor has changed, been renamed, or been lost on the way.
    before, after = (
        {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()} for path in (folder, written)
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["Llama", "Mixtral", "Qwen2-MoE", "DeepSeek-V3", "gpt-oss"])
def test_bf16(name, tmp_path):
    folder, _ = stored(tmp_path / "theirs", name, dtype=torch.bfloat16)
    ours = mx.hub.load(folder)
    assert ours.embedding.weight.dtype is torch.bfloat16
    truth = logits(reread(folder).float(), IDS)
    assert error(logits(ours, IDS).float(), truth) < 0.1
    assert error(logits(mx.hub.load(folder, dtype=torch.float32), IDS), truth) < 1e-5
    written = mx.hub.save(ours, tmp_path / "ours", format=MODELS[name][0])
    assert error(logits(reread(written).float(), IDS), truth) < 1e-5
    mx.hub.load(written)  # its own probe is met


def test_the_model_trains(tmp_path):
    folder, _ = stored(tmp_path, "Qwen2-MoE")
    model = mx.hub.load(folder).train()
    assert model.blocks[1].feed_forward.losses == {"load_balance": 0.002}
    logits = model(IDS)
    nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_tensors_pass_one_by_one(tmp_path, monkeypatch):
    folder, _ = stored(tmp_path, "Mixtral", max_shard_size="8KB")
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def watched(path):
        nonlocal most
        for name, tensor in read_tensors(path):
            alive.add(tensor)
            most = max(most, len(alive))
            yield name, tensor

    monkeypatch.setattr("mixtura.hub.checkpoint.read_tensors", watched)
    mx.hub.load(folder)
    assert most <= 2  # the next one is read before the one that was copied is let go


@pytest.fixture
def mixtral(tmp_path):
    """A sharded Mixtral with its probe."""
    folder, _ = stored(tmp_path / "mixtral", "Mixtral", max_shard_size="8KB")
    mx.hub.write_probe(folder)
    mx.hub.load(folder)
    return folder


def change(folder, edit) -> None:
    """Apply a change to the tensors of a folder, which become one file."""
    tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    edit(tensors)
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink(missing_ok=True)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def refused(folder, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        mx.hub.load(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_shard(mixtral):
    shard = sorted(mixtral.glob("*.safetensors"))[1]
    shard.unlink()
    refused(mixtral, rf"expected \d+ shards in .*, {shard.name} missing")


def test_a_truncated_file(mixtral):
    shard = sorted(mixtral.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(mixtral, rf"expected a whole safetensors file, got '.*{shard.name}'")


def test_a_shard_of_another_checkpoint(mixtral):
    shards = sorted(mixtral.glob("*.safetensors"))
    shutil.copy(shards[0], shards[1])
    refused(mixtral, "what its index says, got a difference: ")


def test_a_damaged_index(mixtral):
    (mixtral / INDEX).write_text("{")
    refused(mixtral, "expected an index with a weight_map")


def test_another_config(mixtral):
    config = json.loads((mixtral / "config.json").read_text())
    for key, value, match in (
        (
            "intermediate_size",
            16,
            r"expected shape \(16, 16\) for 'model.layers.0.block_sparse_moe.experts.0.w\d.weight'",
        ),
        ("num_hidden_layers", 2, "expected a rule that leads to a tensor of the model, got 'model.layers.2"),
        ("num_hidden_layers", 4, "expected tensors for everything, got none, or only a part, for blocks.3"),
        ("num_local_experts", 5, "got none, or only a part, for blocks.0.feed_forward.router.weight|expected shape"),
        ("num_local_experts", 3, "expected an index below 3|expected shape"),
        ("model_type", "bert", "expected a model_type among"),
        ("hidden_act", "relu", "expected hidden_act among silu, gelu, gelu_pytorch_tanh, got 'relu'"),
        ("quantization_config", {"quant_method": "fp8"}, "expected weights that are not quantised"),
    ):
        (mixtral / "config.json").write_text(json.dumps({**config, key: value}))
        refused(mixtral, match)
    (mixtral / "config.json").unlink()
    refused(mixtral, "expected a checkpoint's folder with a config.json")


def test_an_additional_tensor(mixtral):
    change(mixtral, lambda tensors: tensors.update({"model.layers.0.adapter.weight": torch.zeros(2)}))
    refused(mixtral, "expected only tensors that a rule names, got 'model.layers.0.adapter.weight'")


def test_a_missing_tensor(mixtral):
    change(mixtral, lambda tensors: tensors.pop("model.layers.1.block_sparse_moe.experts.2.w2.weight"))
    refused(mixtral, "only a part, for blocks.1.feed_forward.experts.down_proj")


def test_swapped_gate_and_up(mixtral):
    def swap(tensors):
        gate, up = (f"model.layers.1.block_sparse_moe.experts.2.w{i}.weight" for i in (1, 3))
        tensors[gate], tensors[up] = tensors[up], tensors[gate]

    change(mixtral, swap)
    refused(
        mixtral, rf"that '.*{FILE}' tells of, got others .* in blocks\.1\.feed_forward\.experts\.up_proj: it is swapped"
    )
    assert mx.hub.load(mixtral, check=False).config.moe.num_experts == 4


def test_a_transposed_tensor(mixtral):
    name = "model.layers.0.self_attn.o_proj.weight"  # square
    change(mixtral, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    refused(mixtral, r"expected the logits .* in blocks\.0\.attention\.out\.weight")


def test_experts_that_changed_places_are_found_even_if_no_token_chooses_them(mixtral):
    def swap(tensors):
        for w in (1, 2, 3):
            first, second = (f"model.layers.2.block_sparse_moe.experts.{e}.w{w}.weight" for e in (0, 3))
            tensors[first], tensors[second] = tensors[second], tensors[first]
        for layer in range(3):  # nobody is ever sent to these two
            tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"][[0, 3]] = 0

    probe = json.loads((mixtral / FILE).read_text())
    change(mixtral, swap)
    # As if the routers had always been so: the logits then agree.
    model = mx.hub.load(mixtral, check=False)
    probe["logits"] = logits(model, torch.tensor(probe["ids"]))[..., probe["columns"]].tolist()
    probe["sums"] = {name: value for name, value in probe["sums"].items() if "router" not in name}
    (mixtral / FILE).write_text(json.dumps(probe))
    refused(mixtral, r"relative difference of the logits 0\.0e\+00\), in blocks\.2\.feed_forward\.experts\.up_proj")


def test_a_tensor_that_is_not_finite(mixtral):
    change(mixtral, lambda tensors: tensors["model.norm.weight"].fill_(torch.nan))
    refused(mixtral, "expected the logits")


def test_pickles_are_refused(mixtral):
    for file in (*mixtral.glob("*.safetensors"), mixtral / INDEX):
        file.unlink()
    (mixtral / "pytorch_model.bin").write_bytes(b"never opened")
    refused(mixtral, r"expected safetensors in .*, got pickles \(pytorch_model.bin\), which can run any code")
    (mixtral / "pytorch_model.bin").unlink()
    refused(mixtral, "expected model.safetensors, or shards with their index")


def test_a_damaged_probe(mixtral):
    (mixtral / FILE).write_text('{"ids": 3}')
    refused(mixtral, "expected a probe in ")


def test_frequencies_that_move(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    folder, _ = stored(tmp_path, "Llama", rope_parameters=rope)
    refused(folder, "expected rotary frequencies that stay the same at every length, got rope_type='dynamic'")


def test_multi_token_prediction_is_left_out_and_said(tmp_path):
    folder, theirs = stored(tmp_path, "DeepSeek-V3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    change(folder, lambda tensors: tensors.update({"model.layers.3.eh_proj.weight": torch.zeros(2)}))
    with pytest.warns(UserWarning, match="got 1 more of multi-token prediction"):
        ours = mx.hub.load(folder)
    assert error(logits(ours, IDS), logits(theirs, IDS)) < 1e-5


def test_a_folder_that_holds_files_is_left_alone(mixtral):
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        mx.hub.save(mx.hub.load(mixtral), mixtral, format="mixtral")


def plain(**changes) -> Causal:
    values = {"vocab_size": 40, "context": 32, "layers": 2, "dim": 16, "heads": 4, "hidden": 12}
    return Causal(CausalConfig.plain(**{**values, **changes})).eval()


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "gpt_oss", "deepseek_v3", "llama"])
def test_a_model_that_a_family_cannot_express(kind, tmp_path):
    moe = mx.MoEConfig(dim=16, hidden=12, num_experts=4, k=2)
    model = plain(moe=moe)
    if kind == "mixtral":
        written = mx.hub.save(model, tmp_path / kind, format=kind)
        assert error(logits(reread(written), IDS), logits(model, IDS)) < 1e-5
        return
    with pytest.raises(UserError, match=f"(for|that) '{kind}'( can express)?, got"):
        mx.hub.save(model, tmp_path / kind, format=kind)


def test_a_model_that_surgery_has_changed(tmp_path):
    """A dense Llama whose MLPs became mixtures of copies is written as a Mixtral, and still the same function."""
    model = plain()
    before = logits(model, IDS)
    for block in model.blocks:
        dense = block.feed_forward
        layer = mx.MoEConfig(dim=16, hidden=12, num_experts=4, k=2).build()
        with torch.no_grad():
            layer.experts.up_proj.copy_(dense.up_proj.weight)
            layer.experts.down_proj.copy_(dense.down_proj.weight)
        block.feed_forward = layer
    written = mx.hub.save(model, tmp_path / "upcycled", format="mixtral")
    assert error(logits(reread(written), IDS), before) < 1e-5


def test_convert_takes_the_tokenizer_along(mixtral, tmp_path):
    (mixtral / "tokenizer.json").write_text("{}")
    difference = mx.hub.convert(mixtral, tmp_path / "new")
    assert difference < 1e-5
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"
    assert mx.hub.convert(mixtral, tmp_path / "again", format="mixtral", check=False) is None
    with pytest.raises(UserError, match=r"expected a model_type among .*, got 'bert'"):
        mx.hub.convert(mixtral, tmp_path / "third", format="bert")
    assert not (tmp_path / "third").exists()


def test_the_command_line(mixtral, tmp_path, capsys):
    from mixtura.cli import main

    assert main(["convert", str(mixtral), str(tmp_path / "new")]) == 0
    shown = capsys.readouterr()
    assert f"written: {tmp_path / 'new'}\ntransformers gives the same logits: relative difference " in shown.out
    assert main(["convert", str(tmp_path / "new"), str(tmp_path / "dense"), "--format", "llama"]) == 2
    assert "that 'llama' can express, got a mixture" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert "expected a checkpoint's folder with a config.json" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.gguf"), str(tmp_path / "x")]) == 2
    assert "expected format= for a GGUF file" in capsys.readouterr().err
