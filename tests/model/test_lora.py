"""LoRA against PEFT on transformers' Llama, and merged against adapted."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from puna.model.llama import PRESETS, Llama
from puna.model.lora import LoraLinear, add_adapters, finish_adapters, merge_adapters, save_adapters
from puna.model.weights import load_hf, save_hf
from puna.recipe.lora import Lora

CONFIG = replace(PRESETS["1m"], vocab_size=61, dim=32, layers=2, heads=2, kv_heads=1, ffn_dim=64)
KINDS = [Lora(rank=4, alpha=8), Lora(rank=3, alpha=6, rslora=True, targets=["q_proj", "down_proj"])]


def base() -> Llama:
    return Llama(CONFIG).init_weights(torch.Generator().manual_seed(1))


def adapted(lora: Lora) -> Llama:
    """With factors B that are not zero, as after some training."""
    model = add_adapters(base(), lora, seed=3)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.lora_B.weight.normal_(std=0.1, generator=random)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def peft() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, at import
        yield pytest.importorskip("peft")


def test_a_new_adapter_changes_nothing_and_alone_is_trained():
    model = add_adapters(base(), KINDS[0], seed=0)
    assert model(tokens()).equal(base()(tokens()))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(trained) == 2 * 7 * CONFIG.layers


def test_the_seed_decides_the_factors():
    def factors(seed: int) -> torch.Tensor:
        return add_adapters(base(), KINDS[0], seed).get_submodule("layers.1.mlp.up_proj.lora_A").weight  # pyright: ignore

    assert factors(1).equal(factors(1))
    assert not factors(1).equal(factors(2))


def test_only_the_targets_are_adapted():
    model = adapted(KINDS[1])
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    assert names == {"q_proj", "down_proj"}


@pytest.mark.parametrize("lora", KINDS, ids=["lora", "rslora"])
def test_merged_equals_adapted(lora: Lora):
    model = adapted(lora)
    wanted = model(tokens())
    merged = merge_adapters(model)
    assert merged.state_dict().keys() == base().state_dict().keys()
    torch.testing.assert_close(merged(tokens()), wanted, rtol=1e-5, atol=1e-5)
    assert not wanted.allclose(base()(tokens()), atol=1e-2)


def test_rank_0_is_the_model_itself(tmp_path: Path):
    model = base()
    assert add_adapters(model, Lora(), 0) is model
    assert all(p.requires_grad for p in model.parameters())
    assert finish_adapters(model, Lora(), tmp_path / "adapter") is model
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("lora", KINDS, ids=["lora", "rslora"])
def test_peft_reads_the_adapter_and_agrees_in_loss_and_gradients(lora: Lora, tmp_path: Path, peft: Any):
    from transformers import AutoModelForCausalLM

    save_hf(base(), CONFIG, tmp_path / "base", bos_id=0, eos_ids=[1], pad_id=2)
    model = adapted(lora)
    save_adapters(model, lora, tmp_path / "adapter")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())

    mine, wanted = model(tokens()), theirs(tokens()).logits
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
    loss(mine).backward()
    loss(wanted).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    ours = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(ours) == len(gradients) == 2 * len(lora.targets) * CONFIG.layers
    for name, gradient in ours.items():
        other = gradients[f"base_model.model.model.{name.replace('.weight', '.default.weight')}"]
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_the_files_are_whole_and_name_no_place(tmp_path: Path):
    model = adapted(KINDS[0])
    finish_adapters(model, KINDS[0], tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert state["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (4, 32)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8.0, None)
    save_hf(model, CONFIG, tmp_path / "merged", bos_id=0, eos_ids=[1], pad_id=2)
    assert load_hf(tmp_path / "merged")(tokens()).equal(model(tokens()))
