"""LoRA in the stages: an ordinary artifact, the adapter beside it, small checkpoints, bit-exact resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from puna.errors import PunaError
from puna.log import Log
from puna.model.llama import Llama
from puna.model.weights import load_hf
from puna.posttrain import dpo, reward, sft
from puna.posttrain.preferences import Pair, pair_lines
from puna.posttrain.reward_model import load_reward
from puna.recipe import Recipe, Reward
from puna.text.tokenizer import Tokenizer
from puna.train.checkpoint import found

MakeRecipe = Callable[..., Recipe]
LORA = {"rank": 4, "alpha": 8.0}
ROW = torch.arange(3, 15)[None]


def write_chats(path: Path, count: int = 24) -> Path:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i % 3}"}]})
        for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_pairs(path: Path, tokenizer: Tokenizer) -> Path:
    yes, no = ([*tokenizer.encode(text), tokenizer.eot_id] for text in ("yes", "no"))
    path.write_text(pair_lines([Pair([tokenizer.bos_id, *tokenizer.encode(f"{i}:")], yes, no) for i in range(16)]))
    return path


def with_adapter(base: Llama, folder: Path) -> Llama:
    """By the definition, from the files in PEFT's form."""
    config = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    weights = dict(base.named_parameters())
    with torch.no_grad():
        for name, a in state.items():
            if name.endswith("lora_A.weight"):
                b = state[name.replace("lora_A", "lora_B")]
                target = name.removeprefix("base_model.model.model.").removesuffix("lora_A.weight") + "weight"
                weights[target] += b @ a * (config["lora_alpha"] / config["r"])
    return base


@pytest.mark.parametrize("processes", [1, 2])
def test_sft_hands_on_the_merged_model_and_keeps_the_adapter(
    model_folder: Path, make_recipe: MakeRecipe, out: Path, log: Log, processes: int
):
    knobs = make_recipe(sft={"seq_len": 300, "batch_rows": 4, "epochs": 4, "peak_lr": 1e-2, "lora": LORA}).sft
    knobs = knobs.model_copy(update={"processes": processes, "checkpoint_seconds": 1e-6})
    sft.fit(knobs, 0, model_folder, [write_chats(out.parent / "chats.jsonl")], out, log)
    before, after = (load_hf(folder, torch.float32) for folder in (model_folder, out))
    wanted = with_adapter(load_hf(model_folder, torch.float32), out / "adapter")
    found_bf16 = {name: tensor.bfloat16() for name, tensor in wanted.state_dict().items()}
    for name, tensor in after.state_dict().items():
        torch.testing.assert_close(tensor.bfloat16(), found_bf16[name], rtol=8e-3, atol=1e-6)  # one unit of bf16
    assert not after(ROW).allclose(before(ROW), atol=0.1)
    assert after.lm_head.weight.equal(before.lm_head.weight)
    kept = load_file(found(out.parent / "work")[0][1])
    weights = [name for name in kept if name.startswith("model.")]
    assert len(weights) == 2 * 7 * 2
    assert all("lora_" in name for name in weights)


def test_a_killed_training_of_adapters_goes_on_to_the_same_bytes(
    model_folder: Path, make_recipe: MakeRecipe, tmp_path: Path, log: Log
):
    chats = write_chats(tmp_path / "chats.jsonl")
    knobs = make_recipe(sft={"seq_len": 300, "batch_rows": 4, "epochs": 4, "peak_lr": 1e-2, "lora": LORA}).sft
    knobs = knobs.model_copy(update={"checkpoint_seconds": 1e-6, "keep_checkpoints": 100})
    for name in ("whole", "again"):
        (tmp_path / name / "out").mkdir(parents=True)
        (tmp_path / name / "work").mkdir()
    sft.fit(knobs, 0, model_folder, [chats], tmp_path / "whole" / "out", log)
    step, path = found(tmp_path / "whole" / "work")[2]  # as if killed two steps before the end
    assert step > 0
    (tmp_path / "again" / "work" / path.name).write_bytes(path.read_bytes())
    sft.fit(knobs, 0, model_folder, [chats], tmp_path / "again" / "out", log)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        whole, again = (tmp_path / name / "out" / file for name in ("whole", "again"))
        assert whole.read_bytes() == again.read_bytes()


def test_dpo_prefers_relative_to_the_base(
    tokenizer: Tokenizer, model_folder: Path, make_recipe: MakeRecipe, out: Path, log: Log
):
    pairs = write_pairs(out.parent / "pairs.jsonl", tokenizer)
    knobs: dict[str, Any] = {"seq_len": 20, "batch_rows": 8, "epochs": 6, "peak_lr": 1e-2, "lora": LORA, "nll": 0.0}
    dpo.fit(make_recipe(dpo=knobs).dpo, 0, model_folder, pairs, out, log)
    first, *_, last = [json.loads(line)["loss"] for line in log.path.read_text().splitlines()]
    assert first == pytest.approx(np.log(2), rel=1e-5)  # a new adapter is the base, and so is the reference
    assert last < 0.6
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert not load_hf(out, torch.float32)(ROW).allclose(load_hf(model_folder, torch.float32)(ROW), atol=0.01)


def test_a_reward_models_head_is_trained_whole(tokenizer: Tokenizer, model_folder: Path, out: Path, log: Log):
    pairs = write_pairs(out.parent / "pairs.jsonl", tokenizer)
    knobs = Reward.model_validate(
        {"seq_len": 40, "batch_rows": 4, "epochs": 4, "peak_lr": 1e-2, "precision": "fp32", "compile": "off",
         "processes": 1, "lora": LORA}
    )  # fmt: skip
    reward.fit(knobs, 0, model_folder, [pairs], out, log)
    state = load_file(out / "adapter" / "adapter_model.safetensors")
    assert state["base_model.model.score.weight"].bfloat16().equal(load_reward(out).lm_head.weight.bfloat16())
    assert state["base_model.model.score.weight"].any()


def test_a_layout_that_cuts_the_model_is_refused(model_folder: Path, make_recipe: MakeRecipe, out: Path, log: Log):
    knobs = make_recipe(sft={"seq_len": 300, "batch_rows": 4, "lora": LORA, "layout": {"shard": 1}}).sft
    with pytest.raises(PunaError, match="adapters are trained with the model whole in each process"):
        sft.fit(knobs, 0, model_folder, [write_chats(out.parent / "chats.jsonl")], out, log)
