"""Direct preference optimization on the model's own calls, labelled by executing them (section 4.1.4).

For each problem the SFT model answers several times; a call whose result is right is preferred to one whose result is
wrong, and a reply that tells the result to one that does not. The loss is DPO's with beta 0.1 on all but the format's
special tokens, as the paper masks header and termination tokens, plus 0.2 of the likelihood of the chosen response.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.infer.pool import run_jobs
from puna.log import Log
from puna.model.llama import BRANCH
from puna.model.lora import add_adapters, finish_adapters
from puna.model.weights import load_hf
from puna.posttrain.chats import read_jsonl, trained_tokens
from puna.posttrain.preferences import Pair, own_pairs, pair_lines, read_pairs
from puna.recipe import Dpo, Recipe
from puna.run import figure, work_folder, write_text
from puna.text.chat import Chat, Message, parse, render
from puna.text.tokenizer import Tokenizer
from puna.tools import CALCULATOR, last_number, run_call
from puna.train.attention import attention_in, document_attention
from puna.train.batches import IGNORE, Batch, pack, rng
from puna.train.launch import World, count_processes, launch
from puna.train.loop import train
from puna.train.losses import Preference
from puna.train.save import save_model

JOB = 128
"""Problems that are sampled together."""


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Chat model and problems -> a chat model that prefers what works, and pairs.jsonl, what it learned that from."""
    path = work_folder(out) / "pairs.jsonl"
    if not path.exists():
        pairs = sample_pairs(recipe, inputs, log) if "synthesize" in inputs else []
        if "chats" in inputs:
            tokenizer = Tokenizer.load(inputs["sft"])
            pairs += own_pairs(inputs["chats"] / "preferences.jsonl", tokenizer, recipe.dpo.seq_len)
        write_text(path, pair_lines(pairs))
    metrics = fit(recipe.dpo, recipe.seed, inputs["sft"], path, out, log)
    shutil.copyfile(path, out / "pairs.jsonl")
    return metrics


def fit(knobs: Dpo, seed: int, base: Path, path: Path, out: Path, log: Log) -> dict[str, Any]:
    """A chat model and a file of pairs -> a chat model that prefers what was chosen."""
    pairs, tokenizer = read_pairs(path), Tokenizer.load(base)
    batches = Preferences(pairs, None, knobs, tokenizer, seed)
    if len(batches.bins) < knobs.batch_rows:
        log.message(
            f"{len(pairs)} preference pairs do not fill dpo.batch_rows = {knobs.batch_rows}: the model is nearly "
            "always right or nearly always wrong, and goes on as it is; more pairs come from a higher "
            "synthesize.preference_problems or dpo.samples"
        )
        save_model(load_hf(base), tokenizer, out)
        return {"dpo.pairs": figure(len(pairs))}
    reference = work_folder(out) / "reference.npy"
    if not reference.exists():
        save_reference(batches, base, reference, log)
    launch(_train, count_processes(knobs), knobs, seed, base, path, out, log)
    return {
        "dpo.pairs": figure(len(pairs)),
        "dpo.loss": figure(round(log.last("loss", 10), 4)),
        "dpo.tokens": figure(trained_tokens(knobs, log)),
    }


def sample_pairs(recipe: Recipe, inputs: dict[str, Path], log: Log) -> list[Pair]:
    """Right and wrong messages after the same prompt, from `samples` draws for each problem."""
    problems = list(read_jsonl(inputs["synthesize"] / "preference.jsonl"))
    jobs = [
        (inputs["sft"], problems[at : at + JOB], at, recipe.dpo, recipe.seed) for at in range(0, len(problems), JOB)
    ]
    results = run_jobs(sample_some, jobs, log, "sampling calls")
    pairs = [pair for pairs, _ in results for pair in pairs]
    right = sum(right for _, right in results) / (len(problems) * recipe.dpo.samples)
    log.message(f"{right:.3f} of the sampled calls are right; {len(pairs)} pairs")
    return pairs


def sample_some(model: Path, problems: list[dict[str, Any]], at: int, knobs: Dpo, seed: int) -> tuple[list[Pair], int]:
    """Pairs for problems `at`, at + 1, ..., and how many calls were right.

    Preferences are between single messages, as the paper has them for tools (section 4.3.5): first between calls,
    then, after a right call and its result, between replies.
    """
    engine = Engine.load(model)
    tokenizer = engine.tokenizer
    chats = [Chat([Message("user", problem["question"])], tools=[CALCULATOR.schema]) for problem in problems]
    pairs: list[Pair] = []
    right_calls = 0
    for turn, is_right in enumerate((is_right_call, is_right_reply)):
        prompts = [render(chat, tokenizer, generation_prompt=True).ids for chat in chats]
        sampling = Sampling(knobs.max_tokens, knobs.temperature, seed=seed + turn)
        drawn = engine.generate(prompts, sampling, knobs.samples, numbers=range(at, at + len(prompts)))
        going = []
        for problem, chat, ids, responses in zip(problems, chats, prompts, drawn):
            right = [response for response in responses if is_right(response, problem["answer"], tokenizer)]
            wrong = [response for response in responses if response not in right]
            found = [(a, b) for a in _distinct(right) for b in _distinct(wrong)]
            pairs += [Pair(ids, *pair) for pair in found[: knobs.pairs_per_problem]]
            if turn == 0 and right:
                right_calls += len(right)
                message = parse(right[0], tokenizer)
                chat.messages += [message, Message("tool", run_call(message.tool_calls[0], [CALCULATOR]))]
                going.append((problem, chat))
        problems, chats = [problem for problem, _ in going], [chat for _, chat in going]
    return pairs, right_calls


def is_right_call(response: Sequence[int], answer: str, tokenizer: Tokenizer) -> bool:
    """Whether a response is one finished call that gives the answer when it is executed."""
    calls = parse(list(response), tokenizer).tool_calls
    finished = response[-1] in tokenizer.stop_ids
    return finished and len(calls) == 1 and run_call(calls[0], [CALCULATOR]) == answer


def is_right_reply(response: Sequence[int], answer: str, tokenizer: Tokenizer) -> bool:
    """Whether a response is a finished text whose last number is the answer."""
    message = parse(list(response), tokenizer)
    return response[-1] in tokenizer.stop_ids and not message.tool_calls and last_number(message.content) == answer


def _distinct(responses: list[list[int]]) -> list[list[int]]:
    return [list(response) for response in dict.fromkeys(map(tuple, responses))]


class Preferences:
    """Pairs packed into training rows. A pair is a document, its prompt, and two branches of it, the chosen and the
    rejected response, each of which begins with the prompt's last token: what follows that differs."""

    def __init__(
        self, pairs: list[Pair], reference: np.ndarray | None, knobs: Dpo, tokenizer: Tokenizer, seed: int
    ) -> None:
        longest = max((pair.tokens for pair in pairs), default=0)
        if longest > knobs.seq_len:
            raise PunaError(f"a pair has {longest} tokens, dpo.seq_len is {knobs.seq_len}; raise it")
        self.pairs, self.reference, self.seq_len, self.pad_id = pairs, reference, knobs.seq_len, tokenizer.pad_id
        self.mask_format, self.special = knobs.mask_format, torch.tensor(sorted(tokenizer.special.values()))
        self.bins = pack([pair.tokens for pair in pairs], knobs.seq_len, rng(seed, "pack pairs"))
        self.orders = [rng(seed, "pairs", epoch).permutation(len(self.bins)) for epoch in range(knobs.epochs)]

    def __len__(self) -> int:
        return len(self.bins) * len(self.orders)

    def rows(self, numbers: Sequence[int]) -> Batch:
        return self.of([self.bins[self.orders[i // len(self.bins)][i % len(self.bins)]] for i in numbers])

    def of(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of the pairs at these places."""
        tokens = torch.full((len(rows), self.seq_len), self.pad_id)
        documents = torch.full_like(tokens, sum(map(len, rows)))
        number = 0
        for r, row in enumerate(rows):
            at = 0
            for pair in (self.pairs[place] for place in row):
                *before, last = pair.prompt
                for branch, ids in enumerate((before, [last, *pair.chosen], [last, *pair.rejected])):
                    end = at + len(ids)
                    tokens[r, at:end] = torch.tensor(ids)
                    documents[r, at:end] = number + BRANCH * branch
                    at = end
                number += 1
        following = F.pad(documents[:, 1:], (0, 1), value=-1)
        trained = (documents == following) & (documents >= BRANCH)
        labels = torch.where(trained, F.pad(tokens[:, 1:], (0, 1)), IGNORE)
        scored = trained & ~torch.isin(labels, self.special) if self.mask_format else trained
        pairs = [place for row in rows for place in row]
        reference = np.zeros((len(pairs), 2)) if self.reference is None else self.reference[pairs]
        return Batch(tokens, labels, documents, scored, torch.from_numpy(reference))


@torch.no_grad()
def save_reference(batches: Preferences, model_folder: Path, path: Path, log: Log) -> None:
    """The reference model's log-probabilities of every pair, once: [pairs, 2] fp64."""
    model = load_hf(model_folder, dtype=torch.float32).eval()
    loss, found = Preference(1.0, 0.0), torch.empty(len(batches.pairs), 2, dtype=torch.float64)
    order = sorted(range(len(batches.pairs)), key=lambda place: batches.pairs[place].tokens)  # little padding
    with log.progress("reference", len(order)) as bar, attention_in(model, document_attention):
        for at in range(0, len(order), 8):
            places = order[at : at + 8]
            batch = batches.of([[place] for place in places]).to_last_label()
            hidden = model.hidden(batch.tokens, documents=batch.documents)
            found[places] = loss.sums(hidden, model.lm_head.weight, batch)[1]
            bar.advance(len(places))
    aside = path.with_suffix(".aside.npy")
    np.save(aside, found.numpy())
    aside.replace(path)


def _train(world: World, knobs: Dpo, seed: int, base: Path, path: Path, out: Path, log: Log) -> None:
    work, tokenizer = work_folder(out), Tokenizer.load(base)
    batches = Preferences(read_pairs(path), np.load(work / "reference.npy"), knobs, tokenizer, seed)
    model = add_adapters(load_hf(base), knobs.lora, seed)
    train(model, batches, Preference(knobs.beta, knobs.nll), knobs, world, work, log, "DPO")
    if world.rank == 0:
        save_model(finish_adapters(model, knobs.lora, out / "adapter"), tokenizer, out)
