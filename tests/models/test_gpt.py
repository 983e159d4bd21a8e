"""The GPT: causality, cache, rotary positions, which blocks are mixtures, recomputation, refusals."""

import dataclasses

import pytest
import torch
from torch import nn

import mixtura as mx
from mixtura import UserError
from mixtura.models.gpt import GPT, GPTConfig, KVCache, _rotary_tables, _rotate

TINY = GPTConfig(vocab_size=11, context=12, dim=16, layers=2, heads=2, hidden=24, num_experts=4)


def make_model(**options) -> GPT:
    recompute_interval = options.pop("recompute_interval", 0)
    model = GPT(dataclasses.replace(TINY, **options), recompute_interval=recompute_interval)
    for block in model.blocks:  # attention starts as nothing, which would hide its part in what is tested
        nn.init.normal_(block.attention.out.weight, std=0.3)
    nn.init.normal_(model.embedding.weight, std=0.5)
    return model


def tokens(*shape) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, shape)


MIXTURES = {
    "switch": {},
    "topk": {"router": "topk", "k": 2, "shared_hidden": 8, "activation": "swiglu"},
    "noisy_topk": {"router": "noisy_topk", "k": 2},
    "sigmoid_bias": {"router": "sigmoid_bias", "k": 2},
    "dense": {"num_experts": 0},
}
mixtures = pytest.mark.parametrize("options", MIXTURES.values(), ids=list(MIXTURES))


class TestCausality:
    @mixtures
    def test_a_later_token_changes_no_earlier_logits(self, options):
        model = make_model(**options).eval()
        ids = tokens(3, 12)
        before = model(ids)
        for position in (5, 11):
            changed = ids.clone()
            changed[:, position:] = (changed[:, position:] + 1) % TINY.vocab_size
            after = model(changed)
            torch.testing.assert_close(after[:, :position], before[:, :position], rtol=1e-5, atol=1e-5)
            assert (after[:, position] - before[:, position]).abs().max() > 1e-3

    def test_an_earlier_token_changes_later_logits(self):
        model, ids = make_model().eval(), tokens(1, 12)
        changed = ids.clone()
        changed[0, 0] = (ids[0, 0] + 1) % TINY.vocab_size
        assert (model(ids)[0, -1] - model(changed)[0, -1]).abs().max() > 1e-4

    def test_sequences_of_a_batch_do_not_see_one_another(self):
        model, ids = make_model().eval(), tokens(3, 7)
        torch.testing.assert_close(model(ids)[1:2], model(ids[1:2]), rtol=1e-5, atol=1e-5)


class TestRoutersThatSeeTheFuture:
    @pytest.mark.parametrize(("router", "k"), [("expert_choice", 2), ("soft", 4)])
    def test_are_warned_of(self, router, k):
        with pytest.warns(UserWarning, match="expected a causal router in a language model, got (ExpertChoice|Soft):"):
            model = make_model(k=k, router=router)
        ids = tokens(2, 8)
        other = torch.cat([ids[:, :7], (ids[:, 7:] + 1) % TINY.vocab_size], dim=1)
        assert not torch.allclose(model(ids)[:, :7], model(other)[:, :7], atol=1e-7)  # the warning is right

    @pytest.mark.parametrize("router", ["sinkhorn", "base"])
    def test_balance_in_training_alone_is_no_future_in_evaluation(self, router):
        model, ids = make_model(k=1, router=router).eval(), tokens(2, 8)
        other = torch.cat([ids[:, :7], (ids[:, 7:] + 1) % TINY.vocab_size], dim=1)
        torch.testing.assert_close(model(ids)[:, :7], model(other)[:, :7])


class TestCache:
    @mixtures
    @pytest.mark.parametrize("prompt", [1, 5, 12])
    def test_token_by_token_gives_the_logits_of_the_whole(self, options, prompt):
        model, ids = make_model(**options).eval(), tokens(2, 12)
        cache = KVCache(model.config, batch_size=2)
        with torch.no_grad():
            parts = [model(ids[:, :prompt], cache=cache)]
            parts += [model(ids[:, t : t + 1], cache=cache) for t in range(prompt, 12)]
            expected = model(ids)
        assert cache.length == 12
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-5, atol=1e-5)

    def test_in_a_bf16_model_and_under_autocast(self):
        model, ids = make_model().eval(), tokens(1, 6)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            cache = KVCache(model.config, batch_size=1)
            parts = [model(ids[:, t : t + 1], cache=cache) for t in range(6)]
            torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=0.1, atol=0.1)
        model.bfloat16()
        cache = KVCache(model.config, batch_size=1, dtype=torch.bfloat16)
        with torch.no_grad():
            parts = [model(ids[:, t : t + 1], cache=cache) for t in range(6)]
            torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=0.1, atol=0.1)

    def test_several_tokens_behind_a_filled_cache_are_refused(self):
        model = make_model()
        cache = KVCache(model.config, batch_size=1)
        model(tokens(1, 3), cache=cache)
        with pytest.raises(UserError, match="expected one token at a time behind a filled cache, got 2"):
            model(tokens(1, 2), cache=cache)

    def test_a_full_context_is_refused(self):
        model = make_model()
        with pytest.raises(UserError, match=r"expected at most 12 tokens \(context\), got 13"):
            model(tokens(1, 13))
        cache = KVCache(model.config, batch_size=1)
        model(tokens(1, 12), cache=cache)
        with pytest.raises(UserError, match=r"expected at most 12 tokens \(context\), got 13"):
            model(tokens(1, 1), cache=cache)


class TestRotary:
    def test_scores_depend_on_the_distance_alone(self):
        cos, sin = _rotary_tables(30, 8)
        q, k = torch.randn(8), torch.randn(8)

        def score(i, j):
            return (
                _rotate(q.view(1, 1, 1, 8), cos[i], sin[i]).flatten()
                @ _rotate(k.view(1, 1, 1, 8), cos[j], sin[j]).flatten()
            )

        for distance in (0, 1, 7):
            first = score(distance, 0)
            for j in (3, 10, 22):
                torch.testing.assert_close(score(j + distance, j), first, rtol=1e-4, atol=1e-4)
        assert (score(7, 0) - score(1, 0)).abs() > 1e-3

    def test_rotation_keeps_lengths_and_position_zero_is_left_alone(self):
        cos, sin = _rotary_tables(9, 6)
        x = torch.randn(2, 3, 9, 6)
        rotated = _rotate(x, cos, sin)
        torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
        torch.testing.assert_close(rotated[:, :, 0], x[:, :, 0])


class TestStructure:
    @pytest.mark.parametrize(
        ("layers", "every", "places"), [(4, 1, [0, 1, 2, 3]), (5, 2, [1, 3]), (6, 3, [2, 5]), (2, 3, [])]
    )
    def test_every_nth_block_is_a_mixture(self, layers, every, places):
        model = make_model(layers=layers, moe_every=every)
        assert [n for n, block in enumerate(model.blocks) if isinstance(block.feed_forward, mx.MoE)] == places
        assert [n for n in range(layers) if model.config.is_moe(n)] == places

    def test_no_experts_is_dense(self):
        assert not any(isinstance(module, mx.MoE) for module in make_model(num_experts=0).modules())

    @pytest.mark.parametrize("tie", [True, False])
    def test_tied_weights_share_storage(self, tie):
        model = make_model(tie_weights=tie)
        assert (model.head.weight.data_ptr() == model.embedding.weight.data_ptr()) == tie
        assert ("head.weight" in dict(model.named_parameters())) != tie

    def test_the_recipe_reaches_the_layers(self):
        model = make_model(
            router="topk",
            k=3,
            capacity_factor=1.5,
            policy="priority",
            activation="geglu",
            losses={"z": 0.5, "load": 0.0},
        )
        layer = model.blocks[0].feed_forward
        assert (layer.router.k, layer.capacity.factor, layer.policy, layer.losses) == (3, 1.5, "priority", {"z": 0.5})
        assert layer.experts.up_proj.shape == (4, 48, 16)

    def test_attention_starts_as_nothing(self):
        model, ids = GPT(TINY).eval(), tokens(1, 5)
        x = model.embedding(ids)
        rotary = model.cos[:5], model.sin[:5]
        assert not model.blocks[0].attention(x, rotary).any()

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"layers": 0}, "expected layers of at least 1, got 0"),
            ({"vocab_size": -1}, "expected vocab_size of at least 1, got -1"),
            ({"moe_every": 0}, "expected moe_every of at least 1, got 0"),
            ({"num_experts": -1}, r"expected num_experts of at least 0 \(0: dense\), got -1"),
            ({"heads": 3}, "expected heads that divide dim=16 into parts of even width, got heads=3"),
            ({"heads": 16}, "expected heads that divide dim=16 into parts of even width, got heads=16"),
        ],
    )
    def test_impossible_sizes(self, changed, message):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(TINY, **changed)


class TestTraining:
    @pytest.mark.parametrize("interval", [1, 2])
    @pytest.mark.parametrize("collect", [True, False], ids=["collect", "attach"])
    def test_recomputation_changes_neither_gradients_nor_counts(self, interval, collect):
        ids, targets = tokens(2, 8), tokens(2, 8).flatten()
        plain = make_model(router="sigmoid_bias", k=2, layers=3)
        model = make_model(router="sigmoid_bias", k=2, layers=3, recompute_interval=interval)
        model.load_state_dict(plain.state_dict())
        logs = []
        for each in (plain, model):
            with mx.record(each) as log:
                if collect:
                    with mx.collect_losses(each) as losses:
                        logits = each(ids)
                    extra = losses.total()
                    assert len(losses.weighted) == 3 * 2
                else:
                    logits, extra = each(ids), 0.0
                (nn.functional.cross_entropy(logits.flatten(0, 1), targets) + extra).backward()
            logs.append({name: [record.counts_E().tolist() for record in records] for name, records in log.items()})
        assert logs[0] == logs[1]
        assert all(len(records) == 1 for records in logs[1].values())
        for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=name)
        for a, b in zip(plain.blocks, model.blocks, strict=True):
            counts = b.feed_forward.router.pending_counts
            assert torch.equal(a.feed_forward.router.pending_counts, counts)
            assert counts.sum() == 2 * 8 * 2

    def test_the_interval_recomputes_those_blocks_only(self):
        model = make_model(layers=4, recompute_interval=2)
        calls = []
        for number, block in enumerate(model.blocks):
            block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
        logits = model(tokens(1, 4))
        assert calls == [0, 1, 2, 3]
        logits.sum().backward()
        assert calls[4:] == [3, 1]

    def test_it_learns_to_repeat(self):
        model = make_model(layers=1, num_experts=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.arange(11).repeat(1, 2)[:, :12]
        first = None
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            first = first or loss.item()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss.item() < 0.1 * first

    def test_every_parameter_gets_a_gradient(self):
        model = make_model(router="topk", k=4, shared_hidden=4, tie_weights=False)
        model(tokens(4, 12)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())


class TestReset:
    @pytest.mark.parametrize("tie_weights", [True, False])
    @mixtures
    def test_built_on_meta_and_filled_later_it_is_as_new(self, options, tie_weights):
        config = dataclasses.replace(TINY, **{**options, "tie_weights": tie_weights})
        normal = GPT(config)
        with torch.device("meta"):
            model = GPT(config)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.fill_(torch.nan if tensor.is_floating_point() else 77)  # what memory may hold
        model.reset_parameters()
        assert (model.head.weight is model.embedding.weight) is tie_weights
        assert [name for name, _ in model.named_parameters()] == [name for name, _ in normal.named_parameters()]
        assert model.state_dict().keys() == normal.state_dict().keys()
        for (name, tensor), expected in zip(model.named_parameters(), normal.parameters(), strict=True):
            assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype), name
            assert tensor.std().item() == pytest.approx(expected.std().item(), rel=0.5), name
        for name, expected in normal.named_buffers():
            torch.testing.assert_close(dict(model.named_buffers())[name], expected)
        assert model.eval()(tokens(2, 12)).isfinite().all()

    def test_it_forgets_what_was_learned(self):
        model = make_model()
        model.reset_parameters()
        assert not model.blocks[0].attention.out.weight.any()
        assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert model.head.weight is model.embedding.weight


def test_dropout_is_the_experts():
    model = make_model(dropout=0.5)
    assert [block.feed_forward.experts.dropout for block in model.blocks] == [0.5, 0.5]
