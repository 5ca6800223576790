"""DPO as a stage: pairs are labelled by execution, and the model comes to prefer what works."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM

from puna.errors import PunaError
from puna.infer.engine import Sampling
from puna.log import Log
from puna.model.llama import BRANCH
from puna.model.weights import load_hf
from puna.posttrain import dpo
from puna.posttrain.dpo import Pair, Preferences, is_right_call, is_right_reply
from puna.recipe import Recipe
from puna.text.tokenizer import Tokenizer
from puna.train.batches import IGNORE
from puna.train.losses import Preference
from puna.train.save import save_model

MakeRecipe = Callable[..., Recipe]


def call(expression: str) -> str:
    return json.dumps({"name": "calculator", "parameters": {"expression": expression}})


def ids(tokenizer: Tokenizer, text: str, end: str = "<|eot_id|>") -> list[int]:
    return tokenizer.encode(text) + ([tokenizer.special[end]] if end else [])


@pytest.mark.parametrize(
    ("text", "end", "right"),
    [
        (call("2 * 21"), "<|eot_id|>", True),
        (call("6 * 7"), "<|eom_id|>", True),
        (call("40 + 1"), "<|eot_id|>", False),
        (call("2 * 21"), "", False),
        (call("2 * 21") + call("2 * 21"), "<|eot_id|>", False),
        ("42", "<|eot_id|>", False),
        ("", "<|eot_id|>", False),
        (call("2 * 21").replace("calculator", "browser"), "<|eot_id|>", False),
        (call("2 *"), "<|eot_id|>", False),
    ],
)
def test_right_is_one_finished_call_that_works(tokenizer: Tokenizer, text: str, end: str, right: bool):
    assert is_right_call(ids(tokenizer, text, end), "42", tokenizer) is right


@pytest.mark.parametrize(
    ("text", "end", "right"),
    [
        ("The answer is 42.", "<|eot_id|>", True),
        ("6 * 7 = 42", "<|eot_id|>", True),
        ("The answer is 42.", "", False),
        ("The answer is 24.", "<|eot_id|>", False),
        ("42 is not 7", "<|eot_id|>", False),
        (call("42"), "<|eot_id|>", False),
        ("", "<|eot_id|>", False),
    ],
)
def test_a_right_reply_ends_with_the_answer(tokenizer: Tokenizer, text: str, end: str, right: bool):
    assert is_right_reply([*ids(tokenizer, text, end)] or [tokenizer.pad_id], "42", tokenizer) is right


def test_pairs_are_a_right_and_a_wrong_message_after_one_prompt(
    tokenizer: Tokenizer, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    problems = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(12)]
    asked: list[tuple[range, int]] = []

    class Scripted:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

        def generate(
            self, prompts: list[list[int]], sampling: Sampling, n: int, numbers: range
        ) -> list[list[list[int]]]:
            asked.append((numbers, sampling.seed))
            assert (sampling.temperature, sampling.max_tokens, n) == (0.7, 50, 3)
            return [self.replies(tokenizer.decode(prompt)) for prompt in prompts]

        def replies(self, prompt: str) -> list[list[int]]:
            i = int(prompt.rpartition(" + 1?")[0].rpartition("\n\n")[2])
            if "ipython<|end_header_id|>" in prompt:
                good, bad = ids(tokenizer, f"It is {i + 1}."), ids(tokenizer, f"It is {i}.")
                return [bad, good, good] if i % 2 else [good, good, good]
            good, bad = ids(tokenizer, call(f"{i} + 1")), ids(tokenizer, call(f"{i} + 2"))
            return [[good, bad, good], [bad, bad, bad], [good, good, good]][i % 3]

    monkeypatch.setattr(dpo.Engine, "load", lambda folder: Scripted())
    knobs = make_recipe(dpo={"samples": 3, "temperature": 0.7, "max_tokens": 50}).dpo
    pairs, right = dpo.sample_some(tmp_path, problems, 64, knobs, seed=5)
    assert asked == [(range(64, 76), 5), (range(64, 72), 6)]  # a problem without a right call has no result to reply to
    assert right == 4 * 2 + 4 * 3
    calls, replies = pairs[:4], pairs[4:]
    for number, pair in enumerate(calls):
        assert f"{3 * number} + 1?" in tokenizer.decode(pair.prompt)
        assert tokenizer.decode(pair.chosen) == call(f"{3 * number} + 1") + "<|eot_id|>"
        assert tokenizer.decode(pair.rejected) == call(f"{3 * number} + 2") + "<|eot_id|>"
    assert [tokenizer.decode(pair.chosen) for pair in replies] == [
        f"It is {i + 1}.<|eot_id|>" for i in range(12) if i % 2 and i % 3 != 1
    ]
    assert all(f'"{i + 1}"' in tokenizer.decode(p.prompt) for i, p in zip((3, 5, 9, 11), replies))


def some_pairs(tokenizer: Tokenizer, count: int) -> list[Pair]:
    """The question does not tell; the last letter of the answer is what is preferred."""
    return [
        Pair(
            [tokenizer.bos_id, *tokenizer.encode(f"{i:02}:")], ids(tokenizer, f"{i % 7}a"), ids(tokenizer, f"{i % 7}bb")
        )
        for i in range(count)
    ]


def test_rows_are_prompts_and_both_responses(tokenizer: Tokenizer, make_recipe: MakeRecipe):
    pairs = some_pairs(tokenizer, 5)
    reference = np.arange(10, dtype=np.float32).reshape(5, 2)
    batches = Preferences(pairs, reference, make_recipe(dpo={"seq_len": 15, "epochs": 2}).dpo, tokenizer, seed=1)
    assert len(batches) == 10
    batch = batches.of([[3], [1]])
    assert batch.scored is not None
    tokens, labels, documents = (t[0].tolist() for t in (batch.tokens, batch.labels, batch.documents))
    eot, bos, pad = tokenizer.eot_id, tokenizer.bos_id, tokenizer.pad_id
    assert tokens == [bos, *b"03", *b":3a", eot, *b":3bb", eot, pad, pad, pad]
    x = IGNORE
    assert labels == [x, x, x, *b"3a", eot, x, *b"3bb", eot, x, x, x, x]
    assert documents == [0] * 3 + [BRANCH] * 4 + [2 * BRANCH] * 5 + [2] * 3
    assert batch.documents[1].tolist() == [1] * 3 + [1 + BRANCH] * 4 + [1 + 2 * BRANCH] * 5 + [2] * 3
    assert [i for i, scored in enumerate(batch.scored[0].tolist()) if scored] == [3, 4, 7, 8, 9]
    assert batch.reference is not None
    assert batch.reference.tolist() == [[6.0, 7.0], [2.0, 3.0]]

    epochs = [[bytes(row[1:3].tolist()) for row in batches.rows(range(at, at + 5)).tokens] for at in (0, 5)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [b"00", b"01", b"02", b"03", b"04"]
    assert epochs[0] != epochs[1]
    with pytest.raises(PunaError, match=r"a pair has 12 tokens, dpo\.seq_len is 11; raise it"):
        Preferences(pairs, None, make_recipe(dpo={"seq_len": 11}).dpo, tokenizer, 1)


def test_packed_pairs_have_the_loss_and_gradients_of_pairs_alone(
    tokenizer: Tokenizer, model_folder: Path, make_recipe: MakeRecipe
):
    pairs, loss = some_pairs(tokenizer, 7), Preference(0.5, 0.2)
    reference = np.random.default_rng(0).normal(-9, 1, (7, 2))

    def found(seq_len: int) -> list[torch.Tensor]:
        model = load_hf(model_folder, dtype=torch.float32)
        batches = Preferences(pairs, reference, make_recipe(dpo={"seq_len": seq_len}).dpo, tokenizer, 1)
        batch = batches.rows(range(len(batches.bins)))
        assert len(batch.tokens) == {12: 7, 36: 3}[seq_len]
        value = loss(
            model.hidden(batch.tokens, documents=batch.documents), model.lm_head.weight, batch, loss.counts(batch)
        )
        value.backward()
        return [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    for alone, packed in zip(found(12), found(36), strict=True):
        assert (packed - alone).norm() <= 1e-6 * alone.norm()


@torch.no_grad()
def margins(folder: Path, pairs: Sequence[Pair], tokenizer: Tokenizer) -> torch.Tensor:
    """Log-probability of chosen minus rejected, without the format's tokens, one dialogue at a time."""
    model = load_hf(folder, dtype=torch.float32)
    found = []
    for pair in pairs:
        sums = []
        for end in (pair.chosen, pair.rejected):
            log_probs = model(torch.tensor([pair.prompt + end]))[0].log_softmax(-1)
            at = len(pair.prompt) - 1
            sums.append(sum(log_probs[at + i, t] for i, t in enumerate(end) if t not in tokenizer.special.values()))
        found.append(sums[0] - sums[1])
    return torch.stack(found)


def test_on_long_pairs_loss_and_gradients_are_those_of_fp64(
    tokenizer: Tokenizer, model_folder: Path, make_recipe: MakeRecipe, tmp_path: Path, log: Log
):
    """Beside the logits of transformers' Llama in fp64; the sums are thousands of nats."""
    random = torch.Generator().manual_seed(3)

    def words(n: int) -> list[int]:
        return torch.randint(256, (n,), generator=random).tolist()

    pairs = [Pair(words(120), words(325), words(245)), Pair(words(40), words(90), words(400))]
    batches = Preferences(pairs, None, make_recipe(dpo={"seq_len": 1024}).dpo, tokenizer, 0)
    moved = load_hf(model_folder, dtype=torch.float32)
    for weight in moved.parameters():
        weight.data *= 1 + 0.02 * torch.randn(weight.shape, generator=random)
    save_model(moved, tokenizer, tmp_path / "reference", torch.float32)
    dpo.save_reference(batches, tmp_path / "reference", tmp_path / "reference.npy", log)
    batches.reference = np.load(tmp_path / "reference.npy")

    def exact(folder: Path) -> tuple[nn.Module, torch.Tensor]:
        """Log-probabilities of chosen and rejected [pairs, 2]."""
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
        sums = []
        for pair in pairs:
            for end in (pair.chosen, pair.rejected):
                each = model(torch.tensor([pair.prompt + end])).logits[0, len(pair.prompt) - 1 : -1].log_softmax(-1)
                sums.append(each.gather(1, torch.tensor(end)[:, None]).sum())
        return model, torch.stack(sums).view(-1, 2)

    theirs, sums = exact(model_folder)
    margins = sums - exact(tmp_path / "reference")[1].detach()
    wanted = -F.logsigmoid(0.1 * (margins[:, 0] - margins[:, 1])).mean()
    wanted.backward()
    model, batch, loss = load_hf(model_folder, torch.float32), batches.of([[0], [1]]), Preference(0.1, 0.0)
    found = loss(model.hidden(batch.tokens, documents=batch.documents), model.lm_head.weight, batch, loss.counts(batch))
    found.backward()
    assert sums.abs().max() > 1000
    assert found.item() == pytest.approx(wanted.item(), rel=3e-6)  # with sums in fp32 1.5e-5, a gradient 1.4e-5
    for name, parameter in model.named_parameters():
        gradient = theirs.get_parameter(name if name.startswith("lm_head") else f"model.{name}").grad
        assert parameter.grad is not None
        assert gradient is not None
        assert (parameter.grad - gradient).norm() < 3e-6 * gradient.norm(), name


def test_the_stage_makes_the_model_prefer_what_is_chosen(
    tokenizer: Tokenizer, model_folder: Path, make_recipe: MakeRecipe, out: Path, log: Log
):
    pairs = some_pairs(tokenizer, 40)
    lines = "".join(json.dumps(pair._asdict()) + "\n" for pair in pairs)
    (out.parent / "work" / "pairs.jsonl").write_text(lines)  # sampled before the run was interrupted
    knobs: dict[str, Any] = {"seq_len": 12, "batch_rows": 8, "epochs": 6, "peak_lr": 3e-3, "beta": 0.5}
    recipe = make_recipe(dpo=knobs)
    metrics = dpo.run(recipe, {"sft": model_folder, "synthesize": out}, out, log)

    reference = np.load(out.parent / "work" / "reference.npy")
    before, after = (margins(folder, pairs, tokenizer) for folder in (model_folder, out))
    assert torch.from_numpy(reference[:, 0] - reference[:, 1]).float().allclose(before, rtol=1e-4, atol=1e-4)
    assert (after > before + 3).all()
    first = json.loads(log.path.read_text().splitlines()[0])["loss"]
    # at the reference itself every margin is zero: log 2, plus 0.2 of the likelihood
    batches = Preferences(pairs, reference, recipe.dpo, tokenizer, 0)
    batch, model = batches.rows(range(8)), load_hf(model_folder, dtype=torch.float32)
    hidden = model.hidden(batch.tokens, documents=batch.documents)
    log_probs, _ = Preference(0.5, 0.2).sums(hidden, model.lm_head.weight, batch)
    chosen = log_probs[(batch.documents // BRANCH == 1) & (batch.labels != IGNORE)]
    assert first == pytest.approx(np.log(2) - 0.2 * chosen.mean().item(), rel=1e-4)
    assert metrics["dpo.pairs"]["value"] == 40
    assert (out / "pairs.jsonl").read_text() == lines


def test_with_too_few_pairs_the_model_goes_on_unchanged(
    tokenizer: Tokenizer, model_folder: Path, make_recipe: MakeRecipe, out: Path, log: Log, capsys
):
    pairs = some_pairs(tokenizer, 3)
    (out.parent / "work" / "pairs.jsonl").write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in pairs))
    metrics = dpo.run(make_recipe(dpo={"batch_rows": 8}), {"sft": model_folder, "synthesize": out}, out, log)
    assert metrics["dpo.pairs"]["value"] == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "3 preference pairs do not fill dpo.batch_rows = 8" in said
    before, after = (load_hf(folder, dtype=torch.bfloat16).state_dict() for folder in (model_folder, out))
    assert all(before[name].equal(after[name]) for name in before)
