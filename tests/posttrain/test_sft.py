"""SFT as a stage: the model learns to answer, and its artifact loads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.infer.engine import Engine, Sampling
from puna.log import Log
from puna.posttrain import sft
from puna.recipe import Recipe
from puna.text.chat import Chat, Message, render

PAIRS = {"ping": "pong", "left": "right", "day": "night", "up": "down"}


def test_the_model_learns_to_answer(
    model_folder: Path, make_recipe: Callable[..., Recipe], out: Path, log: Log, capsys: pytest.CaptureFixture[str]
):
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in PAIRS.items()]
    chats.append([{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "too long"}])
    folder = out.parent / "synthesize"
    folder.mkdir()
    (folder / "sft.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
    recipe = make_recipe(sft={"seq_len": 300, "batch_rows": 4, "epochs": 80, "peak_lr": 1e-2})
    metrics = sft.run(recipe, {"pretrain": model_folder, "synthesize": folder}, out, log)

    assert "4 chats in 2 rows; 1 too long for one" in capsys.readouterr().err
    assert metrics["sft.loss"]["value"] < 0.1
    engine = Engine.load(out)
    prompts = [render(Chat([Message("user", q)]), engine.tokenizer, generation_prompt=True).ids for q in PAIRS]
    replies = engine.generate(prompts, Sampling(12))
    assert [engine.tokenizer.decode(reply) for (reply,) in replies] == [f"{a}<|eot_id|>" for a in PAIRS.values()]
