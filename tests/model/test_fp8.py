"""FP8: the quantised product against torch's own, the directory against transformers' reading of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from puna.errors import PunaError
from puna.model import fp8
from puna.model.llama import Llama, LlamaConfig
from puna.model.weights import load_hf, save_hf

CONFIG = LlamaConfig(vocab_size=96, dim=64, layers=4, heads=4, kv_heads=2, ffn_dim=96)
TOKENS: dict[str, Any] = {"bos_id": 90, "eos_ids": [91, 92], "pad_id": 93}


@pytest.fixture
def model() -> Llama:
    return Llama(CONFIG).init_weights(torch.Generator().manual_seed(1))


@pytest.fixture
def saved(model: Llama, tmp_path: Path) -> Path:
    save_hf(fp8.quantize(model), CONFIG, tmp_path / "fp8", dtype=torch.bfloat16, shard_bytes=30_000, **TOKENS)
    return tmp_path / "fp8"


def test_rows_fill_the_range_and_come_back_within_the_precision():
    x = torch.randn(20, 50) * torch.logspace(-6, 2, 20)[:, None]
    values, scales = fp8.quantize_rows(x)
    assert (values.dtype, scales.shape) == (torch.float8_e4m3fn, (20, 1))
    assert torch.equal(values.float().abs().amax(1), torch.full((20,), 448.0))
    # three bits of mantissa, and below 2^-6 (of 448) a fixed step
    error = (values.float() * scales - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, scales * 2**-10)).all()
    assert torch.equal(fp8.quantize_rows(torch.zeros(2, 3))[0].float(), torch.zeros(2, 3))


def test_the_bound_clips_outliers_and_keeps_what_is_small():
    x = torch.ones(2, 64)
    x[:, 0] = torch.tensor([1e6, 100.0])
    values, scales = fp8.quantize_rows(x, fp8.BOUND)
    assert torch.allclose(scales[:, 0], torch.tensor([1200 / 448, 100 / 448]))
    back = values.float() * scales
    assert back[0, 0] == pytest.approx(1200)
    assert back[0, 1] == pytest.approx(1, rel=1 / 16)
    unbounded, scales = fp8.quantize_rows(x)
    assert (unbounded[0, 1].float() * scales[0]).item() == 0


def test_the_product_is_that_of_torch():
    linear = torch.nn.Linear(64, 96, bias=False)
    quantized = fp8.FP8Linear.of(linear)
    x = torch.randn(3, 7, 64) * 5
    values, scales = fp8.quantize_rows(x.flatten(0, 1), 1200.0)
    weight, weight_scale = quantized.weight.t(), quantized.weight_scale.t()
    theirs = torch._scaled_mm(values, weight, scale_a=scales, scale_b=weight_scale, out_dtype=torch.bfloat16)
    ours = quantized(x)
    assert (ours.dtype, ours.shape) == (torch.float32, (3, 7, 96))
    assert torch.allclose(ours.flatten(0, 1), theirs.float(), rtol=2**-7, atol=1e-3)
    assert torch.nn.functional.mse_loss(ours, linear(x)).sqrt() < 0.06 * linear(x).std()


def test_only_the_inner_feed_forward_matrices_are_converted(model: Llama):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    after = fp8.quantize(model).state_dict()
    converted = {name.removesuffix(".weight") for name, weight in after.items() if weight.dtype == torch.float8_e4m3fn}
    matrices = ("gate_proj", "up_proj", "down_proj")
    assert converted == {f"layers.{layer}.mlp.{matrix}" for layer in (1, 2) for matrix in matrices}
    assert all(
        torch.equal(after[name], before[name]) for name in before if name.removesuffix(".weight") not in converted
    )
    with pytest.raises(PunaError, match="2 layers"):
        fp8.quantize(Llama(LlamaConfig(vocab_size=96, dim=64, layers=2, heads=4, kv_heads=2, ffn_dim=96)))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_directory_comes_back_as_it_was(model: Llama, saved: Path, dtype: torch.dtype | None, tmp_path: Path):
    again = load_hf(saved, dtype=dtype)
    for name, tensor in model.state_dict().items():
        found = again.state_dict()[name]
        kept = tensor.dtype == torch.float8_e4m3fn or name.endswith("weight_scale")
        assert found.dtype == (tensor.dtype if kept else dtype or torch.bfloat16)
        assert torch.equal(found.float(), tensor.float() if kept else tensor.bfloat16().float()), name
    save_hf(again, CONFIG, tmp_path / "twice", dtype=torch.bfloat16, shard_bytes=30_000, **TOKENS)
    for file in saved.iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    sizes = [t.numel() * t.element_size() for file in saved.glob("*.safetensors") for t in load_file(file).values()]
    assert index["metadata"]["total_size"] == sum(sizes)


def test_transformers_converts_the_same_matrices(saved: Path):
    """Its kernel needs a GPU; what it would convert, and the names and shapes it would look for, do not."""
    transformers = pytest.importorskip("transformers", reason="needs the test dependency transformers")
    quantizers = pytest.importorskip("transformers.quantizers.quantizers_utils")
    integration = pytest.importorskip("transformers.integrations.fbgemm_fp8")
    config = transformers.AutoConfig.from_pretrained(saved)
    about = transformers.FbgemmFp8Config.from_dict(config.quantization_config)
    assert about.activation_scale_ub == 1200.0
    expected = {}
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
        for name, module in list(theirs.named_modules()):
            convert = quantizers.should_convert_module(name, about.modules_to_not_convert)
            if isinstance(module, torch.nn.Linear) and convert:
                theirs.set_submodule(name, integration.FbgemmFp8Linear(module.in_features, module.out_features, False))
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in theirs.state_dict().items()}
    found = {name: tensor for file in saved.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        n: shape for n, (shape, _) in expected.items()
    }
    for name, tensor in found.items():
        quantized = ".mlp." in name and ".0." not in name and ".3." not in name
        wanted = expected[name][1] if quantized else torch.bfloat16
        assert tensor.dtype == wanted, name


@pytest.mark.parametrize(
    ("kept", "converted"),
    [
        (None, ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]),
        (["model.layers.1", "lm_head"], ["model.layers.0.mlp.up_proj"]),
        (["model.layers.10", "up_proj"], ["lm_head"]),
    ],
)
def test_what_is_kept_may_be_named_whole_or_by_its_end(kept: list[str] | None, converted: list[str]):
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head"]
    assert fp8.converted(names, {"modules_to_not_convert": kept}) == converted


@pytest.mark.parametrize(("key", "value"), [("quant_method", "gptq"), ("activation_scale_ub", 100.0)])
def test_other_quantisations_are_refused(saved: Path, key: str, value: Any):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(PunaError, match=f"quantization_config: {key} = {value!r}"):
        load_hf(saved)


def test_a_quantised_model_says_nearly_the_same(model: Llama, saved: Path):
    tokens = torch.randint(CONFIG.vocab_size, (2, 24), generator=torch.Generator().manual_seed(2))
    plain = Llama(CONFIG).init_weights(torch.Generator().manual_seed(1))(tokens)
    quantized = load_hf(saved, dtype=torch.float32)(tokens)
    assert 1e-4 < (quantized - plain).std() / plain.std() < 0.1
