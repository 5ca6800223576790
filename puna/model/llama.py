"""Llama 3.1, the whole architecture in one file: a dense, pre-norm transformer with grouped-query attention,
rotary positions, SwiGLU and no biases (arXiv 2407.21783, section 3.2 and Table 3).

Modules carry the names of the Hugging Face checkpoint, so a state_dict key is the file's key without its
leading "model.", and rotary pairs are half-split as there. The file knows nothing of devices, ranks or
precision: parallel layouts, FP8, LoRA and autocast are applied from outside, by module name.

Shapes: B rows, S tokens a row, K keys to attend to (S, or more with a cache), D = config.head_dim.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.errors import PunaError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary wavelengths; the values are those of Meta's `llama_models` (the
    paper does not describe the scaling)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_max_seq_len < 1:
            raise PunaError(f"rope scaling needs factor >= 1 and original_max_seq_len >= 1, not {self}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise PunaError(f"rope scaling needs 0 < low_freq_factor < high_freq_factor, not {self}")


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of one model. `max_seq_len` is the context it is meant for, in tokens; nothing is sized by
    it.

    Raises PunaError naming the first field that cannot be.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    max_seq_len: int = 131_072
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = RopeScaling()

    def __post_init__(self) -> None:
        for field in (
            "vocab_size",
            "dim",
            "layers",
            "heads",
            "kv_heads",
            "ffn_dim",
            "max_seq_len",
            "norm_eps",
        ):
            if getattr(self, field) <= 0:
                raise PunaError(f"{field} = {getattr(self, field)}: must be positive")
        if self.rope_theta <= 1:
            raise PunaError(f"rope_theta = {self.rope_theta}: must be above 1")
        if self.dim % (2 * self.heads):
            raise PunaError(f"dim = {self.dim}: must be an even multiple of heads = {self.heads}")
        if self.heads % self.kv_heads:
            raise PunaError(f"heads = {self.heads}: must be a multiple of kv_heads = {self.kv_heads}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


PRESETS: dict[str, LlamaConfig] = {
    # Ours: a ladder for laptops and scaling studies, named by its rough size at the vocabulary given here;
    # `dataclasses.replace(PRESETS["1m"], vocab_size=...)` sets another.
    "1m": LlamaConfig(4096, dim=128, layers=4, heads=4, kv_heads=2, ffn_dim=352),
    "4m": LlamaConfig(4096, dim=192, layers=6, heads=6, kv_heads=2, ffn_dim=512),
    "16m": LlamaConfig(4096, dim=384, layers=8, heads=6, kv_heads=2, ffn_dim=1024),
    "60m": LlamaConfig(32_768, dim=512, layers=9, heads=8, kv_heads=4, ffn_dim=1376),
    "150m": LlamaConfig(32_768, dim=768, layers=16, heads=12, kv_heads=4, ffn_dim=2048),
    "400m": LlamaConfig(32_768, dim=1280, layers=18, heads=20, kv_heads=4, ffn_dim=3424),
    "1b": LlamaConfig(32_768, dim=2048, layers=20, heads=32, kv_heads=8, ffn_dim=5472),
    # The paper, Table 3.
    "8b": LlamaConfig(128_256, dim=4096, layers=32, heads=32, kv_heads=8, ffn_dim=14_336),
    "70b": LlamaConfig(128_256, dim=8192, layers=80, heads=64, kv_heads=8, ffn_dim=28_672),
    "405b": LlamaConfig(128_256, dim=16_384, layers=126, heads=128, kv_heads=8, ffn_dim=53_248),
}


def _matmul_parameters(config: LlamaConfig) -> int:
    attention = 2 * config.dim * config.head_dim * (config.heads + config.kv_heads)  # q and o, k and v
    return config.layers * (attention + 3 * config.dim * config.ffn_dim) + config.vocab_size * config.dim


def count_parameters(config: LlamaConfig) -> int:
    """Exact number of parameters, without building the model."""
    norms = (2 * config.layers + 1) * config.dim
    return _matmul_parameters(config) + config.vocab_size * config.dim + norms


def flops_per_token(config: LlamaConfig, seq_len: int) -> int:
    """Floating-point operations to train on one token, forward and backward.

    6 for every parameter that multiplies (all but the input embedding and the norms), plus 12 * seq_len *
    layers * dim for attention's two products. Attention is counted over the full S x S square, though
    causality needs half, as in PaLM's appendix B (arXiv 2204.02311) and most published MFU figures;
    recomputation is not counted.
    """
    return 6 * _matmul_parameters(config) + 12 * config.layers * config.dim * seq_len


class Cache(Protocol):
    """Keys and values of earlier tokens, kept by whoever runs the model."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this layer's new k and v, [B, kv_heads, S, D] with k rotated already, and return all that the
        S queries attend to, [B, kv_heads, K, D] each."""
        ...


BRANCH = 2**32
"""A row's token belongs to document `d`, or to a branch of it: d + BRANCH * branch, branches numbered from 1. The
branches of a document, such as several answers to one prompt, follow it one after the other; each goes on where the
document ends, and sees it and itself only, as if it were in a row of its own."""


def document_positions(documents: Tensor) -> Tensor:
    """Positions [B, S] that restart at 0 with every document [B, S], and with every branch at the document's end."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    number, branch = documents % BRANCH, documents >= BRANCH

    def changes(values: Tensor) -> Tensor:
        return F.pad(values[:, 1:] != values[:, :-1], (1, 0), value=True)

    def latest(here: Tensor) -> Tensor:
        return torch.where(here, index, 0).cummax(dim=1).values

    starts, begins = changes(documents), changes(number)
    branches = branch & (begins | (starts & ~F.pad(branch[:, :-1], (1, 0))))  # where the first of a document starts
    return index - latest(starts) + torch.where(branch, latest(branches) - latest(begins), 0)


def sees(queries: Tensor, keys: Tensor) -> Tensor:
    """Whether tokens of these documents see those, if they come later: of the same document and the same branch, or
    of what comes before the branch."""
    return (queries == keys) | (queries % BRANCH == keys)


def document_mask(documents: Tensor) -> Tensor:
    """Boolean mask [B, 1, S, S], True where a token may attend: earlier or itself, in what it sees of its document."""
    return sees(documents[:, None, :, None], documents[:, None, None, :]).tril()


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Angle per position of each rotary pair, [D / 2], fp32 on the CPU.

    Always on the CPU and in fp32, as in both public implementations: one unit in the last place is 0.008
    radians at position 131,071, and devices differ in their powers by that much.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if (scaling := config.rope_scaling) is None:
        return frequencies
    # Wavelengths that fit high_freq_factor times or more into the original context stay; those that fit less
    # than low_freq_factor times are stretched by `factor`; between, the frequency is interpolated.
    turns = scaling.original_max_seq_len / (2 * math.pi / frequencies)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


class Rope(nn.Module):
    """Rotary position embedding: positions [B, S] -> (cos, sin), each [B, S, 1, D / 2] in fp32."""

    inv_freq: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", rope_frequencies(config), persistent=False)

    def _apply(self, fn, recurse=True):
        """Follow the model to another device, but stay fp32 under to(bfloat16) and valid under to_empty()."""
        super()._apply(fn, recurse)
        self.inv_freq = rope_frequencies(self.config).to(self.inv_freq.device)
        return self

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        # .to() does something only where the model was built under `with torch.device(...)`.
        angles = positions[..., None, None].float() * self.inv_freq.to(positions.device)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D / 2) of x [B, S, heads, D], in fp32, and return it in x's precision."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).type_as(x)


class RMSNorm(nn.Module):
    """Root-mean-square norm, in Meta's order: normalise in fp32, cast back, then scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).type_as(x) * self.weight


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        kv_dim = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        # The number of heads is left to view(): under tensor parallelism a rank holds a part of them.
        B, S, _ = x.shape
        q = rotate(self.q_proj(x).view(B, S, -1, self.head_dim), cos, sin).transpose(1, 2)  # [B, heads, S, D]
        k = rotate(self.k_proj(x).view(B, S, -1, self.head_dim), cos, sin).transpose(1, 2)  # [B, kv_heads, S, D]
        v = self.v_proj(x).view(B, S, -1, self.head_dim).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # [B, kv_heads, K, D]
        return self.o_proj(self.attend(q, k, v, mask).transpose(1, 2).reshape(B, S, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention of q [B, heads, S, D] over k and v [B, kv_heads, K, D]; a mask is boolean and
        broadcasts to [B, heads, S, K]; without one the S queries are the last of the K tokens, causally."""
        S, K = q.shape[-2], k.shape[-2]
        if mask is None and 1 < S < K:
            mask = torch.ones(S, K, dtype=torch.bool, device=q.device).tril(K - S)
        causal = mask is None and S > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.rope = Rope(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def draw_weights(self, generator: torch.Generator | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, initial value) of every weight, on the CPU, drawn one after the other in the order of the modules; the
        model itself stays as it is and may be without memory.

        The paper gives no initialisation; this one is ours. Embedding: standard deviation 1, so that the
        residual stream starts at the scale at which the blocks write to it (with 0.02 they drown the token:
        0.7 nats worse after 300 steps of the "1m" preset). Matrices: 1 / sqrt(fan-in), which keeps the
        variance of their input; those that write to the residual stream are smaller by sqrt(2 * layers), so
        that it does not grow with depth. Norms: one.
        """
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                yield f"{name}.weight", torch.ones_like(module.weight, device="cpu")
            elif isinstance(module, (nn.Embedding, nn.Linear)):
                fan_in = module.in_features if isinstance(module, nn.Linear) else 1
                fan_in *= 2 * self.config.layers if name.endswith(("o_proj", "down_proj")) else 1
                value = torch.empty_like(module.weight, device="cpu")
                yield f"{name}.weight", value.normal_(std=fan_in**-0.5, generator=generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> Self:
        """Give all weights their initial values, and return the model."""
        for name, value in self.draw_weights(generator):
            self.get_parameter(name).copy_(value)
        return self

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The final norm's output [B, S, dim] for tokens [B, S], before the output matrix.

        Attention is causal. `documents` [B, S] numbers the documents packed into a row, each contiguous: a
        token then sees its own document only (paper, section 3.2), in a BRANCH of it that branch only. `mask`,
        boolean and broadcastable to [B, 1, S, K] with True where a token may attend, replaces both rules.
        `positions` [B, S] default to 0..S-1, from 0 again in each document; with a `cache` they must be given.
        """
        if documents is not None and (mask is not None or cache is not None):
            raise ValueError("documents cannot be combined with mask or cache: build one mask from both")
        if cache is not None and positions is None:
            raise ValueError("a cache needs positions: only its owner knows how many tokens came before")
        if documents is not None:
            mask = document_mask(documents)
            positions = document_positions(documents) if positions is None else positions
        elif positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]

        cos, sin = self.rope(positions)
        x = self.embed_tokens(tokens)  # [B, S, dim]
        for layer in self.layers:
            x = layer(x, cos, sin, mask, cache)
        return self.norm(x)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits [B, S, vocab_size]; the arguments are those of `hidden`."""
        return self.lm_head(self.hidden(tokens, positions, documents, mask, cache))
