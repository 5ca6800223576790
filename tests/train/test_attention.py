"""The attentions for training on CPUs against the model's own."""

import pytest
import torch

from puna.model.llama import PRESETS, Attention, Llama, document_mask
from puna.train.attention import BLOCK, attention_in, block_attention, choose_attention, document_attention


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("seq_len", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 9])
def test_equals_the_models_attention_with_its_gradients(seq_len: int) -> None:
    q, k, v = (torch.randn(2, heads, seq_len, 32, requires_grad=True) for heads in (4, 2, 2))
    mask = document_mask((torch.rand(2, seq_len) < 0.02).cumsum(1))
    upstream = torch.randn(2, 4, seq_len, 32)
    results = []
    for attend in (Attention(PRESETS["1m"], 0).attend, block_attention, document_attention):
        out = attend(q, k, v, mask)
        results.append([out, *torch.autograd.grad(out, (q, k, v), upstream)])
    for result in results[1:]:
        for ours, theirs in zip(result, results[0]):
            assert relative(ours, theirs) < 1e-6 or (ours - theirs).abs().max() < 1e-6  # one token: gradients are zero


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (1e4 * torch.randn(1, 2, 16, 8) for _ in range(3))
    mask = document_mask(torch.zeros(1, 16, dtype=torch.int64))
    assert block_attention(q, k, v, mask).isfinite().all()


def test_is_in_place_only_within_the_block() -> None:
    model = Llama(PRESETS["1m"]).init_weights()
    tokens = torch.randint(0, 4096, (2, 200))
    documents = (torch.rand(2, 200) < 0.02).cumsum(1)
    before = model(tokens, documents=documents)
    with attention_in(model, block_attention):
        assert all(vars(layer.self_attn)["attend"] is block_attention for layer in model.layers)
        assert relative(model(tokens, documents=documents), before) < 1e-6
    assert not any("attend" in vars(layer.self_attn) for layer in model.layers)
    with attention_in(model, None):
        assert not any("attend" in vars(layer.self_attn) for layer in model.layers)


def test_each_is_chosen_where_it_was_measured_to_be_faster() -> None:
    cpu, bf16, fp32 = torch.device("cpu"), torch.bfloat16, torch.float32
    assert choose_attention(cpu, bf16, compiled=True, seq_len=256) is block_attention
    assert choose_attention(cpu, bf16, compiled=True, seq_len=8192) is None
    assert choose_attention(cpu, fp32, compiled=True, seq_len=256) is None
    assert choose_attention(cpu, fp32, compiled=False, seq_len=8192) is document_attention
    assert choose_attention(cpu, bf16, compiled=False, seq_len=256) is document_attention
    assert choose_attention(torch.device("cuda"), bf16, compiled=True, seq_len=256) is None
