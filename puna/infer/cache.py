"""The paged key-value cache: blocks of a fixed number of tokens, shared by all requests that begin alike.

The scheme is vLLM's (arXiv 2309.06180, sections 4.1 to 4.4): a request's keys and values lie in blocks anywhere in one
tensor, found through its list of blocks. A full block is known by a digest of its tokens and of all before them, so a
prompt that begins like an earlier one starts with that one's blocks and computes only the rest. A block that no request
holds stays known until its room is needed; the one that was let go of first goes first.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import psutil
import torch

from puna.infer.request import TokenLogprob
from puna.model.llama import Llama, LlamaConfig

BLOCK = 16
"""Tokens in a block."""
CPU_CACHE = 2**30
"""Bytes of a cache on a CPU, unless one longest request needs more."""


def new_cache(config: LlamaConfig, blocks: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Keys and values [layers, 2, blocks, BLOCK, kv_heads, head_dim]. On a CPU, memory is taken only as it is used."""
    shape = (config.layers, 2, blocks, BLOCK, config.kv_heads, config.head_dim)
    if device.type == "cpu":  # numpy leaves it to the system to fill pages with zeros, PyTorch does so itself
        zeros = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
        return torch.from_numpy(zeros).view(dtype).view(shape)
    return torch.zeros(shape, dtype=dtype, device=device)


def block_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    return config.layers * 2 * BLOCK * config.kv_heads * config.head_dim * dtype.itemsize


def default_blocks(model: Llama, rows: int) -> int:
    """Blocks for `rows` requests of the longest context, within half of a GPU's free memory; on a CPU, where other
    engines may run beside, within CPU_CACHE or what one longest request needs, and a quarter of the free memory."""
    weight, longest = next(model.parameters()), -(-model.config.max_seq_len // BLOCK)
    size = block_bytes(model.config, weight.dtype)
    if weight.is_cuda:
        most = torch.cuda.mem_get_info(weight.device)[0] // 2 // size
    else:
        most = min(psutil.virtual_memory().available // 4 // size, max(longest, CPU_CACHE // size))
    return max(1, min(rows * longest, int(most)))


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The digest of a full block that follows the one with key `parent` (b"" for the first)."""
    return hashlib.blake2b(parent + np.array(tokens, np.int64).tobytes(), digest_size=16).digest()


class BlockManager:
    """Who holds which block. Knows numbers only; block 0 is never given out: padding is written there."""

    def __init__(self, blocks: int) -> None:
        self.total = blocks - 1
        self._holders = [0] * blocks
        self._empty = list(range(blocks - 1, 0, -1))  # a stack: memory that was used before is used again first
        self._idle: OrderedDict[int, None] = OrderedDict()  # known, held by nobody, longest idle first
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._logprobs: dict[bytes, tuple[int, list[TokenLogprob | None]]] = {}

    @property
    def free(self) -> int:
        """Blocks that can be had, known ones included."""
        return len(self._empty) + len(self._idle)

    def find(self, key: bytes) -> int | None:
        """The block with these contents."""
        return self._block_of.get(key)

    def hold(self, block: int) -> None:
        """One more request uses a known block."""
        self._idle.pop(block, None)
        self._holders[block] += 1

    def take(self) -> int:
        """A block to write in; the caller has looked that one is free."""
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        self._holders[block] = 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """A request lets go of its blocks: the last first, so that beginnings stay known longest."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._empty.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Make a full block known, unless its contents are known from another."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key], self._key_of[block] = block, key

    def keep_logprobs(self, key: bytes, likeliest: int, logprobs: list[TokenLogprob | None]) -> None:
        """Remember the log-probabilities of a known block's tokens for as long as the block is known."""
        if key in self._block_of and self._logprobs.get(key, (-1,))[0] < likeliest:
            self._logprobs[key] = likeliest, logprobs

    def logprobs(self, key: bytes, likeliest: int) -> list[TokenLogprob | None] | None:
        """Those of a known block with the likeliest tokens asked for, if they were ever computed."""
        kept, logprobs = self._logprobs.get(key, (-1, []))
        if kept < likeliest:
            return None
        return [one and TokenLogprob(one.token, one.logprob, one.top[:likeliest]) for one in logprobs]

    def forget_all(self) -> None:
        """Know no contents any more, say because the weights have changed; requests keep their blocks."""
        self._empty += self._idle
        self._idle.clear()
        for block in list(self._key_of):
            self._forget(block)

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block)
        del self._block_of[key]
        self._logprobs.pop(key, None)
