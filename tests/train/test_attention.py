"""Block attention against the model's own."""

import pytest
import torch

from puna.model.llama import PRESETS, Attention, Llama, document_mask
from puna.train.attention import BLOCK, block_attention, block_attention_in, suits_block_attention


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("seq_len", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 9])
def test_equals_the_models_attention_with_its_gradients(seq_len: int) -> None:
    q, k, v = (torch.randn(2, heads, seq_len, 32, requires_grad=True) for heads in (4, 2, 2))
    mask = document_mask((torch.rand(2, seq_len) < 0.02).cumsum(1))
    upstream = torch.randn(2, 4, seq_len, 32)
    results = []
    for attend in (Attention(PRESETS["1m"], 0).attend, block_attention):
        out = attend(q, k, v, mask)
        results.append([out, *torch.autograd.grad(out, (q, k, v), upstream)])
    for ours, theirs in zip(results[1], results[0]):
        assert relative(ours, theirs) < 1e-6 or (ours - theirs).abs().max() < 1e-6  # one token: gradients are zero


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (1e4 * torch.randn(1, 2, 16, 8) for _ in range(3))
    mask = document_mask(torch.zeros(1, 16, dtype=torch.int64))
    assert block_attention(q, k, v, mask).isfinite().all()


def test_is_in_place_only_while_wanted() -> None:
    model = Llama(PRESETS["1m"]).init_weights()
    tokens = torch.randint(0, 4096, (2, 200))
    documents = (torch.rand(2, 200) < 0.02).cumsum(1)
    before = model(tokens, documents=documents)
    with block_attention_in(model, wanted=True):
        assert all(vars(layer.self_attn)["attend"] is block_attention for layer in model.layers)
        assert relative(model(tokens, documents=documents), before) < 1e-6
    assert not any("attend" in vars(layer.self_attn) for layer in model.layers)
    with block_attention_in(model, wanted=False):
        assert not any("attend" in vars(layer.self_attn) for layer in model.layers)


def test_is_wanted_where_it_was_measured_to_be_faster() -> None:
    cpu, bf16 = torch.device("cpu"), torch.bfloat16
    assert suits_block_attention(cpu, bf16, compiled=True, seq_len=256)
    assert not suits_block_attention(cpu, torch.float32, compiled=True, seq_len=256)
    assert not suits_block_attention(cpu, bf16, compiled=False, seq_len=256)
    assert not suits_block_attention(cpu, bf16, compiled=True, seq_len=8192)
    assert not suits_block_attention(torch.device("cuda"), bf16, compiled=True, seq_len=256)
