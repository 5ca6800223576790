"""int8 matrices against the ones they stand for."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from puna.model.int8 import Int8Linear, quantize, to_int8
from puna.model.llama import PRESETS, Llama


def test_weights_come_back_within_half_a_step():
    weight = torch.randn(50, 70, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 50)[:, None]
    weight[7] = 0
    rounded, scale = quantize(weight)
    assert rounded.dtype == torch.int8
    assert rounded.abs().amax(1).tolist() == [127 if row != 7 else 0 for row in range(50)]
    assert ((rounded * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()


@pytest.mark.parametrize(("activations", "error"), [(False, 0.006), (True, 0.009)])
def test_products_are_near_the_exact_ones(activations: bool, error: float):
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(300, 60, bias=False)
    nn.init.normal_(linear.weight, generator=generator)
    x = torch.randn(2, 9, 300, generator=generator)
    found, exact = Int8Linear(linear, activations)(x), linear(x)
    # rounding to steps of the largest value / 127 errs by that / sqrt(12): about 0.7% for normal numbers, each time
    relative = ((found - exact).norm() / exact.norm()).item()
    assert error / 2 < relative < 2 * error


def test_w8a8_is_a_sum_of_integers():
    generator = torch.Generator().manual_seed(2)
    linear = nn.Linear(64, 32, bias=False)
    nn.init.normal_(linear.weight, generator=generator)
    x = torch.randn(5, 64, generator=generator)
    (w, w_scale), (q, q_scale) = quantize(linear.weight.detach()), quantize(x)
    exact = (q.long() @ w.long().T).double() * q_scale[:, None] * w_scale
    torch.testing.assert_close(Int8Linear(linear, activations=True)(x).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["int8", "int8_weights"])
def test_a_whole_model(kind: str):
    config = replace(PRESETS["1m"], vocab_size=96)
    model = Llama(config).init_weights(torch.Generator().manual_seed(3)).eval()
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        exact = model(tokens)
        to_int8(model, kind)  # pyright: ignore[reportArgumentType]
        found = model(tokens)
    matrices = [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert len(matrices) == 7 * config.layers + 1
    assert 0.001 < (found - exact).norm() / exact.norm() < 0.03
    assert model.embed_tokens.weight.dtype == torch.float32
