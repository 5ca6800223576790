"""The architecture against transformers and llama_models; packed rows against one document at a time."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from puna.errors import PunaError
from puna.model.llama import (
    BRANCH,
    PRESETS,
    Llama,
    LlamaConfig,
    RopeScaling,
    count_parameters,
    document_mask,
    document_positions,
    flops_per_token,
    rope_frequencies,
)

TINY = LlamaConfig(vocab_size=96, dim=64, layers=2, heads=4, kv_heads=2, ffn_dim=96)
LAST = TINY.max_seq_len - 24  # first position of a row of 24 that ends at 131,071


def tiny(config: LlamaConfig = TINY) -> Llama:
    return Llama(config).init_weights(torch.Generator().manual_seed(1))


@torch.no_grad()
def with_scaled_norms(model: Llama) -> Llama:
    """The weights of fresh norms are all one, which would hide a norm that does not scale."""
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.uniform_(0.5, 1.5)
    return model


def rows(batch: int = 2, length: int = 24) -> Tensor:
    return torch.randint(TINY.vocab_size, (batch, length), generator=torch.Generator().manual_seed(2))


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


# -- sizes --


@pytest.mark.parametrize(("name", "count"), [("8b", 8_030_261_248), ("70b", 70_553_706_496), ("405b", 405_853_388_800)])
def test_published_sizes_are_exact(name: str, count: int):
    with torch.device("meta"):
        model = Llama(PRESETS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert count_parameters(PRESETS[name]) == count


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_buildable_gqa(name: str):
    config = replace(PRESETS[name], vocab_size=5000)
    with torch.device("meta"):
        model = Llama(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert config.kv_heads < config.heads
    assert 32 <= config.head_dim <= 128


def test_flops_per_token_equals_what_torch_counts():
    tokens, model = rows(), tiny()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    assert counter.get_total_flops() == flops_per_token(TINY, tokens.shape[1]) * tokens.numel()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"layers": -1}, "layers = -1"),
        ({"kv_heads": 3}, "multiple of kv_heads = 3"),
        ({"heads": 64}, "even multiple of heads = 64"),
        ({"rope_theta": 1.0}, "rope_theta = 1.0"),
    ],
)
def test_impossible_configuration_names_its_field(change: dict[str, int], named: str):
    with pytest.raises(PunaError, match=named):
        replace(TINY, **change)


@pytest.mark.parametrize("change", [{"factor": 0.5}, {"low_freq_factor": 4.0}, {"original_max_seq_len": 0}])
def test_impossible_rope_scaling_is_refused(change: dict[str, float]):
    with pytest.raises(PunaError, match="rope scaling needs"):
        RopeScaling(**change)  # type: ignore[arg-type]


# -- rotary positions --


def test_scaled_frequencies_have_the_published_values():
    frequencies = rope_frequencies(PRESETS["8b"])
    wanted = {
        29: 2.166570764e-3,  # the first that is interpolated
        30: 1.371893568e-3,
        32: 5.248461610e-4,
        34: 1.785078128e-4,
        35: 9.556212354e-5,  # the first that is divided by 8
        63: 3.068925989e-7,
    }
    assert {i: frequencies[i].item() for i in wanted} == pytest.approx(wanted, rel=5e-7)
    assert frequencies.double().sum().item() == pytest.approx(5.386058200729, rel=5e-8)
    unscaled = rope_frequencies(replace(PRESETS["8b"], rope_scaling=None))
    assert torch.equal(frequencies[:29], unscaled[:29])
    assert torch.equal(frequencies[35:], unscaled[35:] / 8)


def test_scaled_frequencies_equal_metas_bit_for_bit(meta: SimpleNamespace):
    unscaled = rope_frequencies(replace(PRESETS["8b"], rope_scaling=None))
    assert torch.equal(rope_frequencies(PRESETS["8b"]), meta.model.apply_scaling(unscaled))


def test_rotation_at_the_last_position_is_fp32_even_under_autocast():
    model = Llama(TINY)
    with torch.autocast("cpu", torch.bfloat16):
        cos, sin = model.rope(torch.tensor([[131_071]]))
    assert cos.dtype == sin.dtype == torch.float32
    assert cos[0, 0, 0, 0].item() == pytest.approx(-0.81798350, abs=1e-7)
    assert sin[0, 0, 0, 0].item() == pytest.approx(-0.57524168, abs=1e-7)


def test_frequencies_survive_meta_construction_and_casts():
    wanted = rope_frequencies(TINY)
    with torch.device("meta"):
        model = Llama(TINY)
    assert torch.equal(model.to_empty(device="cpu").rope.inv_freq, wanted)
    assert torch.equal(model.bfloat16().rope.inv_freq, wanted)
    assert "rope.inv_freq" not in model.state_dict()


# -- parity --


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("start", [0, LAST])
@pytest.mark.parametrize("scaling", [RopeScaling(), None], ids=["scaled", "unscaled"])
def test_logits_and_gradients_match_transformers(attention: str, start: int, scaling: RopeScaling | None):
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": TINY.rope_theta}
    if scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=TINY.vocab_size,
            hidden_size=TINY.dim,
            intermediate_size=TINY.ffn_dim,
            num_hidden_layers=TINY.layers,
            num_attention_heads=TINY.heads,
            num_key_value_heads=TINY.kv_heads,
            max_position_embeddings=TINY.max_seq_len,
            rms_norm_eps=TINY.norm_eps,
            rope_parameters=rope,
            attn_implementation=attention,
        )
    )
    model = with_scaled_norms(tiny(replace(TINY, rope_scaling=scaling)))
    theirs = {name.removeprefix("model."): weight for name, weight in reference.named_parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            theirs[name].copy_(weight)

    tokens = rows()
    positions = torch.arange(start, start + tokens.shape[1]).expand_as(tokens)
    logits = model(tokens, positions=positions)
    wanted = reference(tokens, position_ids=positions).logits
    assert relative(logits, wanted) < 1e-5

    next_token_loss(logits, tokens).backward()
    next_token_loss(wanted, tokens).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert relative(weight.grad, theirs[name].grad) < 1e-5, name
    assert len(theirs) == len(list(model.parameters()))


def to_meta(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Our tensor under Meta's name, with its rows in Meta's order: pair i of a head is rows 2i and 2i + 1."""
    for ours, theirs in {
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
        "self_attn": "attention",
        "q_proj": "wq",
        "k_proj": "wk",
        "v_proj": "wv",
        "o_proj": "wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }.items():
        name = name.replace(ours, theirs)
    if name.endswith(("wq.weight", "wk.weight")):
        half = TINY.head_dim // 2
        order = torch.arange(TINY.head_dim).view(2, half).T.flatten()
        tensor = tensor.view(-1, TINY.head_dim, TINY.dim)[:, order].reshape(tensor.shape)
    return name, tensor


@pytest.mark.parametrize("start", [0, LAST])
@pytest.mark.parametrize("scaling", [RopeScaling(), None], ids=["scaled", "unscaled"])
def test_logits_and_gradients_match_meta(meta: SimpleNamespace, start: int, scaling: RopeScaling | None):
    tokens = rows()
    B, S = tokens.shape
    reference = meta.model.Transformer(
        meta.args.ModelArgs(
            dim=TINY.dim,
            n_layers=TINY.layers,
            n_heads=TINY.heads,
            n_kv_heads=TINY.kv_heads,
            vocab_size=TINY.vocab_size,
            multiple_of=32,
            ffn_dim_multiplier=0.5,
            norm_eps=TINY.norm_eps,
            rope_theta=TINY.rope_theta,
            use_scaled_rope=scaling is not None,
            max_batch_size=B,
            max_seq_len=S,
        )
    )
    # A window of the rotations instead of a cache of 131,072 empty keys.
    rotations = meta.model.precompute_freqs_cis(TINY.head_dim, start + S, TINY.rope_theta, scaling is not None)
    reference.freqs_cis = rotations[start:]
    model = with_scaled_norms(tiny(replace(TINY, rope_scaling=scaling)))
    reference.load_state_dict(dict(to_meta(*item) for item in model.state_dict().items()))

    positions = torch.arange(start, start + S).expand_as(tokens)
    logits = model(tokens, positions=positions)
    wanted = meta.model.Transformer.forward.__wrapped__(reference, tokens, 0)  # without inference_mode
    assert relative(logits, wanted) < 1e-5

    next_token_loss(logits, tokens).backward()
    next_token_loss(wanted, tokens).backward()
    theirs = dict(reference.named_parameters())
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        meta_name, gradient = to_meta(name, weight.grad)
        assert relative(gradient, theirs[meta_name].grad) < 1e-5, name


# -- documents, masks and caches --


def test_positions_restart_in_each_document():
    documents = torch.tensor([[7, 7, 7, 2, 2, 7], [0, 1, 1, 1, 1, 1]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]


def test_packed_documents_equal_one_at_a_time():
    model, tokens, lengths = tiny(), rows(1), [7, 1, 11, 5]
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    packed = model(tokens, documents=documents)
    masked = model(tokens, positions=document_positions(documents), mask=document_mask(documents))
    assert relative(packed, alone) < 1e-6
    assert torch.equal(masked, packed)
    assert relative(model(tokens), alone) > 1e-2  # without the mask it is another function

    # The gradients of a sum over documents are the sum of theirs.
    packed.square().mean().backward()
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    alone.square().mean().backward()
    for found, weight in zip(gradients, model.parameters()):
        assert found is not None
        assert weight.grad is not None
        assert relative(found, weight.grad) < 1e-5


def test_branches_equal_rows_of_their_own():
    model, tokens = tiny(), rows(1)
    lengths = {(0, 0): 5, (0, 1): 3, (0, 2): 4, (1, 0): 2, (2, 1): 3, (2, 2): 2, (3, 0): 1, (3, 1): 4}
    numbers = [document + BRANCH * branch for document, branch in lengths]
    documents = torch.repeat_interleave(torch.tensor(numbers), torch.tensor(list(lengths.values())))[None]
    parts = dict(zip(lengths, tokens.split(list(lengths.values()), dim=1)))
    empty = tokens[:, :0]
    alone = []
    for (document, branch), part in parts.items():
        before = parts.get((document, 0), empty) if branch else empty
        alone.append(model(torch.cat([before, part], 1))[:, before.shape[1] :])
    positions = [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 0, 1, 0, 1, 2, 0, 1, 0, 1, 2, 3, 4]
    assert document_positions(documents).tolist() == [positions]
    assert relative(model(tokens, documents=documents), torch.cat(alone, 1)) < 1e-6


def test_no_gradient_crosses_documents():
    model, tokens = tiny(), rows(2)
    documents = torch.repeat_interleave(torch.tensor([4, 9, 5]), torch.tensor([6, 10, 8])).expand_as(tokens)
    embedded = model.embed_tokens(tokens)
    model.embed_tokens.register_forward_hook(lambda *_: embedded)
    logits = model(tokens, documents=documents)
    (gradient,) = torch.autograd.grad(logits[:, 6:16].square().sum(), embedded)
    assert gradient[:, 6:16].abs().min() > 0
    assert torch.count_nonzero(gradient[:, :6]) == torch.count_nonzero(gradient[:, 16:]) == 0


class ListCache:
    """The least cache there is: everything seen, concatenated."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.kept:
            k, v = torch.cat([self.kept[layer][0], k], dim=2), torch.cat([self.kept[layer][1], v], dim=2)
        self.kept[layer] = k, v
        return k, v


@pytest.mark.parametrize("explicit_mask", [False, True])
@torch.no_grad()
def test_incremental_decoding_equals_one_shot(explicit_mask: bool):
    model, tokens = tiny(), rows()
    cache, logits, done = ListCache(), [], 0
    for part in tokens.split([9, 1, 1, 6, 7], dim=1):
        positions = torch.arange(done, done + part.shape[1]).expand_as(part)
        done += part.shape[1]
        mask = (positions[:, None, :, None] >= torch.arange(done)) if explicit_mask else None
        logits.append(model(part, positions=positions, mask=mask, cache=cache))
    assert relative(torch.cat(logits, dim=1), model(tokens)) < 1e-6


def test_contradictory_arguments_are_refused():
    model, tokens = tiny(), rows()
    with pytest.raises(ValueError, match="cannot be combined"):
        model(tokens, documents=tokens, mask=document_mask(tokens))
    with pytest.raises(ValueError, match="needs positions"):
        model(tokens, cache=ListCache())


# -- initialisation, precision, compilation --


def test_initialisation_depends_only_on_the_generator():
    first, second = tiny(), Llama(TINY).init_weights(torch.Generator().manual_seed(7))
    torch.manual_seed(5)
    again = tiny()
    for (name, weight), same, other in zip(first.named_parameters(), again.parameters(), second.parameters()):
        assert torch.equal(weight, same)
        assert torch.equal(weight, other) == ("norm" in name)


def test_initial_loss_is_that_of_a_guess():
    tokens = rows(8, 64)
    loss = next_token_loss(tiny()(tokens), tokens).item()
    assert loss == pytest.approx(torch.tensor(96.0).log().item() + 0.5, abs=0.3)  # logits of variance 1 cost 1/2


def test_bf16_autocast_stays_close_and_reaches_every_parameter():
    model, tokens = tiny(), rows()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens, documents=tokens.cumsum(1) // 400)
    assert logits.dtype == torch.bfloat16
    assert relative(logits.float(), model(tokens, documents=tokens.cumsum(1) // 400)) < 2e-2
    next_token_loss(logits.float(), tokens).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_in_one_graph_equals_eager(packed: bool):
    # aot_eager traces forward and backward as inductor does, without its minute of code generation.
    model, tokens = tiny(), rows()
    documents = tokens.cumsum(1) // 400 if packed else None
    wanted = model(tokens, documents=documents)
    next_token_loss(wanted, tokens).backward()
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(tokens, documents=documents)
    assert relative(found, wanted) < 1e-6
    next_token_loss(found, tokens).backward()
    for weight, gradient in zip(model.parameters(), gradients):
        assert weight.grad is not None
        assert gradient is not None
        assert relative(weight.grad, gradient) < 1e-6
