"""A Llama on a CPU through the compiled library: weights packed once, then whole steps in C."""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.errors import PunaError
from puna.infer.native import library as lib
from puna.infer.native.packing import KINDS, Weight, pack, products, round_up
from puna.model.llama import Llama


def native_runner(model: Llama) -> "NativeRunner | None":
    """A runner for the model, or None where there is no library or it cannot run this model: not on a CPU, or matrices
    other than fp32, bf16 and int8."""
    weight = model.embed_tokens.weight
    if not lib.instruction_sets() or weight.device.type != "cpu" or weight.dtype not in KINDS:
        return None
    weights = products(model)
    return None if weights is None else NativeRunner(model, weights)


class NativeRunner:
    """Runs steps of a model, whose weights it has copied; a puna.infer.runner.Runner.

    What a token gets is the same to the bit whatever shares its step and however many threads
    (torch.get_num_threads()) run. `instructions` is one of library.INSTRUCTIONS, by default the fastest that the
    processor has. Any thread may call; one step runs at a time.
    """

    def __init__(self, model: Llama, weights: list[list[Weight]], instructions: str | None = None) -> None:
        available, library = lib.instruction_sets(), lib.load_library()
        if library is None or (instructions is not None and instructions not in available):
            raise PunaError(f"instructions = {instructions!r}: this processor and library have {available or 'none'}")
        self._library, self.config = library, (config := model.config)
        self._instructions = lib.INSTRUCTIONS.index(instructions or available[-1])
        self._packed = pack(weights)
        self._embed = model.embed_tokens.weight.detach().contiguous()
        self._inv_freq = model.rope.inv_freq.float().contiguous()
        names = [f"layers.{i}.{name}_layernorm" for i in range(config.layers) for name in ("input", "post_attention")]
        norms = [model.get_parameter(f"{name}.weight").detach().float() for name in [*names, "norm"]]
        self._norms = F.pad(torch.stack(norms), (0, -config.dim % 32)).contiguous()
        self._model = lib.Model(
            layers=config.layers, dim=config.dim, heads=config.heads, kv_heads=config.kv_heads,
            head_dim=config.head_dim, ffn=config.ffn_dim, embed_kind=KINDS[self._embed.dtype],
            norm_eps=config.norm_eps, embed=self._embed.data_ptr(), inv_freq=self._inv_freq.data_ptr(),
            norms=self._norms.data_ptr(), matrices=self._packed.matrices,
        )  # fmt: skip

    def step(
        self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor, wanted: Tensor
    ) -> Tensor:
        """Append tokens to the cache and return the logits [len(wanted), vocab], fp32, of the tokens `wanted`.

        Request s brings tokens[starts[s] : starts[s + 1]], the last of its lengths[s] in the cache after this step; its
        row of block_tables [requests, blocks] names its blocks in order. The cache is [layers, 2, blocks, block_size,
        kv_heads, head_dim], fp32 or bf16 and contiguous; prompts and single tokens may stand in one step.
        """
        hidden = self._hidden(tokens, starts, lengths, block_tables, cache)
        return self._logits(hidden if len(wanted) == len(tokens) else hidden[wanted])

    def decode(self, tokens: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor) -> Tensor:
        """A step of one token a request: tokens [rows] -> logits [rows, vocab]."""
        starts = torch.arange(len(tokens) + 1, dtype=torch.int32)
        return self._logits(self._hidden(tokens, starts, lengths, block_tables, cache))

    def hidden(self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor) -> Tensor:
        """As step(), but the final hidden states [tokens, dim], fp32, of all tokens."""
        return self._hidden(tokens, starts, lengths, block_tables, cache)[:, : self.config.dim]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, dim] fp32 -> logits [n, vocab] fp32."""
        return self._logits(F.pad(hidden, (0, -self.config.dim % 32)))

    def _hidden(self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor) -> Tensor:
        """[tokens, dim rounded up to 32]"""
        if cache.dtype not in KINDS or not cache.is_contiguous():
            raise ValueError(
                f"the cache must be contiguous fp32 or bf16, not {cache.dtype} with strides {cache.stride()}"
            )
        names = ("tokens", "starts", "lengths", "tables")
        arrays = [array.to(torch.int32).contiguous() for array in (tokens, starts, lengths, block_tables)]
        hidden = torch.empty(len(tokens), round_up(self.config.dim))
        self._call(
            self._library.puna_hidden, sequences=len(lengths), rows=len(tokens), table_stride=block_tables.shape[1],
            cache_kind=KINDS[cache.dtype], blocks=cache.shape[2], block_size=cache.shape[3],
            cache=cache.data_ptr(), hidden=hidden.data_ptr(), **dict(zip(names, (a.data_ptr() for a in arrays))),
        )  # fmt: skip
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        logits = torch.empty(len(hidden), round_up(self.config.vocab_size))
        self._call(self._library.puna_logits, rows=len(hidden), hidden=hidden.data_ptr(), logits=logits.data_ptr())
        return logits[:, : self.config.vocab_size]

    def _call(self, function: Any, **batch: int) -> None:
        batch["threads"] = torch.get_num_threads()
        if function(ctypes.byref(self._model), ctypes.byref(lib.Batch(**batch)), self._instructions):
            raise MemoryError(f"no memory for a step of {batch['rows']:,} tokens; give fewer at a time")
