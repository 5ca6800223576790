"""The reward model: branches in one row against rows of their own, its directory in transformers, what it learns."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from puna.errors import PunaError
from puna.log import Log
from puna.model.llama import BRANCH, document_mask, document_positions
from puna.model.weights import load_hf
from puna.posttrain import reward
from puna.posttrain.preferences import Pair, pair_lines, read_pairs
from puna.posttrain.reward import Ranking, Rankings, merge, ranks_right
from puna.posttrain.reward_model import RewardModel, Scorer, load_reward, save_reward
from puna.recipe import Recipe
from puna.text.chat import Chat, Message, render
from puna.text.tokenizer import Tokenizer
from puna.train.attention import attention_in, document_attention
from puna.train.batches import IGNORE

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def model(model_folder: Path) -> RewardModel:
    model = RewardModel.from_language_model(load_hf(model_folder, dtype=torch.float32))
    torch.nn.init.normal_(model.lm_head.weight)
    return model.requires_grad_(False).eval()


def random_pairs(count: int, edited: bool = True) -> list[Pair]:
    random = np.random.default_rng(3)

    def ids() -> list[int]:
        return random.integers(256, size=random.integers(1, 9)).tolist()

    return [Pair(ids(), ids(), ids(), ids() if edited and i % 2 else None) for i in range(count)]


def alone(model: RewardModel, prompt: list[int], response: list[int]) -> float:
    """The score of a response in a row of its own."""
    return model.lm_head(model.hidden(torch.tensor([prompt + response])))[0, -1, 0].item()


def test_a_response_sees_the_prompt_and_itself_only():
    documents = torch.tensor([[0, 0, BRANCH, BRANCH, 2 * BRANCH, 1, 1 + BRANCH]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert document_mask(documents)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("attend", [None, document_attention])
def test_branches_in_packed_rows_score_as_rows_of_their_own(
    model: RewardModel, make_recipe: MakeRecipe, attend: Callable[..., torch.Tensor] | None
):
    pairs = random_pairs(12)
    rankings = Rankings(pairs, make_recipe(reward={"seq_len": 64}).reward, 0, seed=1)
    batch = rankings.rows(range(len(rankings)))
    with attention_in(model, attend):
        scores = model.lm_head(model.hidden(batch.tokens, documents=batch.documents))[..., 0]
    ends = batch.labels != IGNORE
    found = sorted(zip(batch.labels[ends].tolist(), scores[ends].tolist()))
    ranked = ((pair.prompt, list(enumerate(pair.ranked, 0))) for pair in pairs)
    expected = sorted((rank, alone(model, prompt, ids)) for prompt, answers in ranked for rank, ids in answers)
    assert [rank for rank, _ in found] == [rank for rank, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-5, abs=1e-5)


def test_answers_come_in_another_order_in_every_epoch(make_recipe: MakeRecipe):
    pairs = random_pairs(30)
    rankings = Rankings(pairs, make_recipe(reward={"seq_len": 64, "epochs": 2}).reward, 0, seed=1)
    labels = rankings.rows(range(len(rankings))).labels
    orders = [tuple(row[row != IGNORE].tolist()) for row in labels]
    assert {rank for order in orders for rank in order} == {0, 1, 2}
    assert len({order[:2] for order in orders}) > 2
    half = len(rankings) // 2
    assert sorted(map(len, orders[:half])) == sorted(map(len, orders[half:]))
    assert orders[:half] != orders[half:]


def test_pairs_of_one_prompt_and_better_answer_share_their_prompt():
    pairs = [Pair([1], [2], [3]), Pair([1], [2], [4, 4]), Pair([1], [5], [3]), Pair([1], [2], [3])]
    pairs.append(Pair([1], [2], [6], [7]))
    assert merge(pairs, 9) == [
        ([1], [(0, [2]), (1, [3]), (1, [4, 4])]),
        ([1], [(0, [5]), (1, [3])]),
        ([1], [(0, [7]), (1, [2]), (2, [6])]),
    ]
    assert [len(ranked) for _, ranked in merge(pairs, 4)] == [2, 2, 2, 2, 3]  # what does not fit has an own prompt


def test_the_loss_ranks_every_two_answers_to_a_prompt(model: RewardModel, make_recipe: MakeRecipe):
    pairs = random_pairs(8)
    rankings = Rankings(pairs, make_recipe(reward={"seq_len": 64}).reward, 0, seed=1)
    batch, loss = rankings.rows(range(len(rankings))), Ranking()
    assert loss.counts(batch).tolist() == [4 * 1 + 4 * 3]
    hidden = model.hidden(batch.tokens, documents=batch.documents)
    value = loss(hidden, model.lm_head.weight, batch, torch.tensor([2.0]))
    expected = 0.0
    for pair in pairs:
        scores = [alone(model, pair.prompt, answer) for answer in pair.ranked]
        for better in range(len(scores)):
            for worse in range(better + 1, len(scores)):
                expected += -F.logsigmoid(torch.tensor(scores[better] - scores[worse])).item() / 2
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_transformers_reads_the_directory_and_scores_alike(model: RewardModel, tokenizer: Tokenizer, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification

    save_reward(model, tokenizer, tmp_path, torch.float32)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == "LlamaForSequenceClassification"
    conversations = [(pair.prompt, pair.ranked) for pair in random_pairs(5)]
    ours = Scorer.load(tmp_path).score_responses(conversations)
    for (prompt, answers), scores in zip(conversations, ours):
        for answer, score in zip(answers, scores):
            assert theirs(torch.tensor([prompt + answer])).logits.item() == pytest.approx(score, rel=1e-5, abs=1e-5)
    again = load_reward(tmp_path).state_dict()
    assert all(again[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_chats_are_scored_by_their_last_message(model: RewardModel, tokenizer: Tokenizer):
    chats = [Chat([Message("user", "Hi"), Message("assistant", answer)]) for answer in ("Hello!", "No.")]
    scores = Scorer(model, tokenizer).score(chats)
    for chat, score in zip(chats, scores):
        ids = render(chat, tokenizer).ids
        assert score == pytest.approx(alone(model, ids[:1], ids[1:]), rel=1e-5)
    with pytest.raises(PunaError, match="chat 0 does not end with the assistant's message"):
        Scorer(model, tokenizer).score([Chat([Message("user", "Hi")])])


def test_directories_that_are_no_reward_model(model_folder: Path, model: RewardModel, tokenizer: Tokenizer, tmp_path):
    with pytest.raises(PunaError, match="LlamaForCausalLM"):
        load_reward(model_folder)
    save_reward(model, tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(PunaError, match=r"has no model\.safetensors"):
        load_reward(tmp_path)


def marked_pairs(tokenizer: Tokenizer, count: int, seed: int) -> list[Pair]:
    """Answers that agree with their prompt are better than others."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        mark, other = random.permutation(list("abcdef"))[:2]
        prompt = [tokenizer.bos_id, *tokenizer.encode(f"{mark}:")]
        chosen, rejected = ([*tokenizer.encode(str(end)), tokenizer.eot_id] for end in (mark, other))
        pairs.append(Pair(prompt, chosen, rejected))
    return pairs


def test_the_stage_learns_from_the_pretrained_model(
    tokenizer: Tokenizer, model_folder: Path, make_recipe: MakeRecipe, out: Path, log: Log
):
    path = out.parent / "pairs.jsonl"
    near = [pair._replace(chosen=pair.rejected, rejected=pair.chosen, strength="slightly better")
            for pair in marked_pairs(tokenizer, 200, 2)]  # fmt: skip
    path.write_text(pair_lines(marked_pairs(tokenizer, 96, 0) + near))
    knobs = {"seq_len": 32, "batch_rows": 8, "epochs": 150, "peak_lr": 1e-2, "micro_rows": 4, "warmup_steps": 2}
    common = {"precision": "fp32", "compile": "off", "processes": 1}
    metrics = reward.fit(make_recipe(reward=knobs | common).reward, 0, model_folder, [path], out, log)
    assert metrics["reward.pairs"]["value"] == 96  # near ties are left out
    assert metrics["reward.loss"]["value"] < 0.3
    assert ranks_right(Scorer.load(out), marked_pairs(tokenizer, 100, 1)).mean() > 0.9
    assert load_file(out / "model.safetensors")["score.weight"].dtype == torch.bfloat16


def test_a_layout_trains_the_same_reward_model(model_folder: Path, make_recipe: MakeRecipe, tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(pair_lines(random_pairs(60)))
    knobs = {"seq_len": 32, "batch_rows": 4, "peak_lr": 1e-2, "micro_rows": 2, "warmup_steps": 2, "precision": "fp32"}
    knobs |= {"epochs": 2, "epsilon": 1e-4}  # a gradient near zero is not all of a step
    for name, more in {"whole": {"processes": 1}, "cut": {"processes": 2, "layout": {"pp": 2}}}.items():
        (tmp_path / name / "work").mkdir(parents=True)
        log = Log(tmp_path / name, "reward", quiet=True)
        fit = make_recipe(reward=knobs | {"compile": "off"} | more).reward
        reward.fit(fit, 0, model_folder, [path], tmp_path / name / "out", log)
    whole, cut = (dict(load_reward(tmp_path / name / "out").state_dict()) for name in ("whole", "cut"))
    losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "reward.jsonl").read_text().splitlines()]
              for name in ("whole", "cut")]  # fmt: skip
    assert len(losses[0]) > 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, tensor in whole.items():
        assert cut[name].float().allclose(tensor.float(), rtol=1e-2, atol=1e-4), name  # the files are in bf16


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": [1], "chosen": [2]}', "line 1 is no pair"),
        ('{"prompt": [1], "chosen": [2], "rejected": [3], "strength": "best"}', "strength = 'best'; it is one of"),
    ],
)
def test_lines_that_are_no_pair(tmp_path: Path, line: str, message: str):
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(PunaError, match=message):
        read_pairs(tmp_path / "pairs.jsonl")


def test_pairs_that_do_not_fit_a_row(make_recipe: MakeRecipe):
    with pytest.raises(PunaError, match=r"reward\.seq_len is 8; bring some, or raise it"):
        Rankings([Pair([1] * 5, [2], [3, 4, 5])], make_recipe(reward={"seq_len": 8}).reward, 0, 0)
    with pytest.raises(PunaError, match="0 preferences"):
        Rankings([], make_recipe(reward={"seq_len": 8}).reward, 0, 0)
