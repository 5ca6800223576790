"""Post-training in rounds (section 4.1): each samples from the best model so far, trains a reward model on all
preferences, chooses what SFT learns, finetunes the pretrained model anew, and prefers the newest preferences by DPO.

Every stage of a round trains several models and averages them; the best on held-out problems goes on, if it beats the
best model so far. The ledger says what each round trained on, measured and kept. Every step is an artifact of its own
(steps.py), so a killed run goes on at the step, in training at its checkpoint.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from puna.errors import PunaError
from puna.log import Log
from puna.model.weights import read_json
from puna.posttrain import dpo, reward, sft
from puna.posttrain.average import average
from puna.posttrain.chats import read_jsonl
from puna.posttrain.measure import Marks, measure, scores
from puna.posttrain.preferences import first_of, own_pairs, pair_lines, read_pairs
from puna.posttrain.reward_model import Scorer
from puna.posttrain.sample import Drawn, best_of, chats_of, draw, pairs_of, read_drawn, write_drawn
from puna.posttrain.steps import Steps
from puna.posttrain.tool_problems import Problem
from puna.recipe import Recipe
from puna.recipe.training import Training
from puna.run import figure, work_folder, write_text
from puna.score import change, proportion
from puna.text.tokenizer import Tokenizer
from puna.train.batches import rng

Figure = dict[str, Any]


class Kept(NamedTuple):
    """The best model so far: its step and its share of right first messages on the validation problems."""

    step: str
    score: Figure


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Pretrained model, first chats and problems -> the best model of all rounds, with ledger.json; in `reward` the
    last reward model, in `start` the model before the rounds, in pairs.jsonl what that one gave DPO to learn."""
    play = Rounds(recipe, inputs, Steps(work_folder(out) / "steps", log), log)
    kept = play.start()
    for number in range(1, recipe.posttrain.rounds + 1):
        kept = play.round(number, kept)
        write_text(work_folder(out) / "ledger.json", json.dumps(play.ledger, indent=1) + "\n")
    metrics = play.report(kept)
    for step, folder in (
        (kept.step, out),
        (play.ledger[0]["best"]["step"], out / "start"),
        (play.reward, out / "reward"),
    ):
        if step:
            unsealed = shutil.ignore_patterns("manifest.json", "adapter")
            shutil.copytree(play.steps[step], folder, ignore=unsealed, dirs_exist_ok=True)
    shutil.copyfile(play.steps["round-1/sample"] / "newest.jsonl", out / "pairs.jsonl")
    write_text(out / "ledger.json", json.dumps(play.ledger, indent=1) + "\n")
    return metrics


class Rounds:
    """The rounds of one run: what they share, and the ledger as it grows."""

    def __init__(self, recipe: Recipe, inputs: dict[str, Path], steps: Steps, log: Log) -> None:
        self.recipe, self.knobs, self.seed, self.steps, self.log = recipe, recipe.posttrain, recipe.seed, steps, log
        self.base, self.data = inputs["pretrain"], inputs["synthesize"]
        if not (self.data / "call_sft.jsonl").is_file():
            raise PunaError("the rounds begin with chats of calls, and there are none; give synthesize.call_chats")
        self.prompts, self.validation, self.held_out = (
            list(read_jsonl(self.data / f"call_{name}.jsonl")) for name in ("prompts", "validation", "held_out")
        )
        self.ledger: list[dict[str, Any]] = []
        self.chats = [self.data / "call_sft.jsonl"]
        self.own: Path | None = None
        if "chats" in inputs:
            self.chats.append(inputs["chats"] / "chats.jsonl")
            self.own = inputs["chats"] / "preferences.jsonl"
        self.pairs: list[Path] = []
        self.reward = ""

    def start(self) -> Kept:
        """SFT on the first chats alone: round 0."""
        kept, entry = self.best("round-0/sft", self.recipe.sft, self.train_sft, None)
        self.ledger.append({"round": 0, "sft": entry, "best": kept._asdict()})
        self.log.message(f"round 0: {kept.score['value']:.3f} of first messages right at temperature 1")
        return kept

    def round(self, number: int, kept: Kept) -> Kept:
        """One round, from the best model so far to the best after it."""
        name = f"round-{number}"
        size = len(self.prompts) / self.knobs.rounds
        problems = self.prompts[round(size * (number - 1)) : round(size * number)]
        entry: dict[str, Any] = {"round": number, "from": kept.step, "problems": len(problems)}
        entry["sample"] = self.steps.make(f"{name}/sample", partial(self.sample, kept.step, problems, number))
        self.pairs.append(self.steps[f"{name}/sample"] / "pairs.jsonl")
        entry["reward"] = None
        if self.knobs.choose == "reward" or number == self.knobs.rounds:  # else nobody asks it
            entry["held_out"] = self.steps.make(f"{name}/held-out", partial(self.sample, kept.step, self.validation, 0))
            entry["reward"] = self.make_reward(name)
        entry["chosen"] = self.steps.make(f"{name}/chosen", partial(self.choose, name, kept.step, problems, number))
        self.chats.append(self.steps[f"{name}/chosen"] / "chats.jsonl")
        train_sft = partial(self.train_sft, base=kept.step if self.knobs.sft_from == "best" else None)
        after_sft, entry["sft"] = self.best(f"{name}/sft", self.recipe.sft, train_sft, kept)
        train_dpo = partial(self.train_dpo, after_sft.step, self.pairs[-1].with_name("newest.jsonl"))
        after_dpo, entry["dpo"] = self.best(f"{name}/dpo", self.recipe.dpo, train_dpo, after_sft)
        self.ledger.append(entry | {"best": after_dpo._asdict()})
        scores = " -> ".join(f"{each.score['value']:.3f}" for each in (kept, after_sft, after_dpo))
        self.log.message(f"round {number}: right at the first message {scores} (before, SFT, DPO): {after_dpo.step}")
        return after_dpo

    # -- steps: function(out, log) -> metrics --------------------------------------------------------------------------

    def sample(self, step: str, problems: Sequence[Problem], number: int, out: Path, log: Log) -> dict[str, Any]:
        """Answers of a model, judged by execution: drawn.jsonl; the preferences among them, pairs.jsonl, and
        as many of each prompt as DPO takes, newest.jsonl."""
        retries = self.knobs.retries if number else 0  # held-out problems are for measuring: as many answers to each
        drawn = draw(self.steps[step], problems, self.knobs, self.draws("sample", number), log, retries=retries)
        write_drawn(out / "drawn.jsonl", drawn)
        pairs = pairs_of(drawn, self.knobs.pairs_per_prompt)
        if self.own and number == 1:  # the user's are among the newest preferences of the first round
            longest = min(self.recipe.dpo.seq_len, self.recipe.reward.seq_len)
            pairs += own_pairs(self.own, Tokenizer.load(self.base), longest)
        write_text(out / "pairs.jsonl", pair_lines(pairs))
        write_text(out / "newest.jsonl", pair_lines(first_of(pairs, self.recipe.dpo.pairs_per_problem)))
        right = sum(sum(each.right) for each in drawn) / sum(len(each.right) for each in drawn)
        return {"right": figure(round(right, 4), "share", n=len(drawn)), "pairs": figure(len(pairs))}

    def choose(
        self, name: str, step: str, problems: Sequence[Problem], number: int, out: Path, log: Log
    ) -> dict[str, Any]:
        """chats.jsonl: the answers that SFT learns. Refuses a reward model that is no better than a random pick."""
        metrics: dict[str, Any] = {}
        by_reward = False
        if self.reward and self.knobs.choose == "reward":
            held_out = read_drawn(self.steps[f"{name}/held-out"] / "drawn.jsonl")
            metrics = picks_of(Scorer.load(self.steps[self.reward]), held_out)
            by_reward = metrics["gain"]["low"] > 0
        if self.knobs.choose == "reward" and not by_reward:
            log.message(refusal(metrics.get("gain"), self.knobs.samples))
        if by_reward:
            seed, scorer = self.draws("choose", number), self.steps[self.reward]
            drawn = draw(self.steps[step], problems, self.knobs, seed, log, scorer)
        else:
            drawn = read_drawn(self.steps[f"{name}/sample"] / "drawn.jsonl")
        chats = chats_of(problems, drawn, Tokenizer.load(self.base), self.knobs.problems_per_chat)
        write_text(out / "chats.jsonl", "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats))
        return metrics | {"chats": figure(len(chats)), "by_reward": figure(int(by_reward))}

    def train_sft(self, knobs: Any, seed: int, out: Path, log: Log, base: str | None = None) -> dict[str, Any]:
        return sft.fit(knobs, seed, self.steps[base] if base else self.base, self.chats, out, log)

    def train_dpo(self, step: str, pairs: Path, knobs: Any, seed: int, out: Path, log: Log) -> dict[str, Any]:
        return dpo.fit(knobs, seed, self.steps[step], pairs, out, log)

    def train_reward(self, knobs: Any, seed: int, out: Path, log: Log) -> dict[str, Any]:
        return reward.fit(knobs, seed, self.base, self.pairs, out, log)

    def train_average(self, steps: list[str], out: Path, log: Log) -> dict[str, Any]:
        average([self.steps[step] for step in steps], out)
        return {}

    def judge(self, step: str, out: Path, log: Log) -> dict[str, Any]:
        """One attempt at every validation problem; the first message counts."""
        marks = measure(self.steps[step], self.validation, self.knobs, self.draws("judge"), log, greedy=False)
        return scores(marks, self.validation)

    def judge_reward(self, held_out: Path, step: str, out: Path, log: Log) -> dict[str, Any]:
        return {"first": proportion(reward.ranks_right(Scorer.load(self.steps[step]), read_pairs(held_out)))}

    # -- several models, and the best of them --------------------------------------------------------------------------

    def candidates(
        self, name: str, knobs: Training, train: Callable[..., dict[str, Any]], judge: Callable[..., dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """A model for each multiple of the learning rate, each with its own order of the data, and their average."""
        found, steps = [], []
        for number, multiple in enumerate(self.knobs.average, 1):
            step = f"{name}-{number}"
            varied = knobs.model_copy(update={"peak_lr": knobs.peak_lr * multiple})
            metrics = self.steps.make(step, partial(train, varied, self.draws(name, number)))
            found.append({"step": step, "peak_lr": varied.peak_lr, "trained": metrics})
            steps.append(step)
        if len(steps) > 1:
            step = f"{name}-average"
            self.steps.make(step, partial(self.train_average, steps))
            found.append({"step": step})
        for each in found:
            measured = self.steps.make(f"{each['step']}-judged", partial(judge, each["step"]))
            each |= {"score": measured["first"], "measured": measured}
        return found

    def best(
        self, name: str, knobs: Training, train: Callable[..., dict[str, Any]], kept: Kept | None
    ) -> tuple[Kept, dict[str, Any]]:
        """The best of a stage's models, if it beats the best so far; else that one stays."""
        found = self.candidates(name, knobs, train, self.judge)
        top = max(found, key=lambda each: each["score"]["value"])
        best = Kept(top["step"], top["score"])
        passed = kept is None or best.score["value"] > kept.score["value"]
        return best if kept is None or passed else kept, {"candidates": found, "passed": passed}

    def make_reward(self, name: str) -> dict[str, Any] | None:
        """The reward model of a round, the best on held-out pairs of the models it came from; or none."""
        held_out, knobs = self.steps[f"{name}/held-out"] / "pairs.jsonl", self.recipe.reward
        pairs, tested = read_pairs(*self.pairs), read_pairs(held_out)
        if not pairs or not tested or len(reward.Rankings(pairs, knobs, 0, self.seed)) < knobs.batch_rows:
            self.log.message(
                f"no new reward model in {name}: {len(pairs)} preferences, {len(tested)} held-out ones, a step takes "
                f"{knobs.batch_rows} rows; raise synthesize.call_prompts, posttrain.pairs_per_prompt or reward.epochs"
            )
            return None
        judge = partial(self.judge_reward, held_out)
        found = self.candidates(f"{name}/reward", self.recipe.reward, self.train_reward, judge)
        top = max(found, key=lambda each: each["score"]["value"])
        self.reward = top["step"]
        return {"candidates": found, "kept": {"step": top["step"], "score": top["score"]}}

    def draws(self, *item: str | int) -> int:
        """A seed for one purpose."""
        return int(rng(self.seed, "rounds", *item).integers(2**31))

    # -- figures -------------------------------------------------------------------------------------------------------

    def report(self, kept: Kept) -> dict[str, Any]:
        """Models on problems by which nothing was decided: at temperature 1 as `first`, greedily as `solved`."""
        start = self.ledger[0]["best"]["step"]
        marks = {name: self.test(name, step) for name, step in {"start": start, "end": kept.step}.items()}
        for name in self.knobs.controls:
            train = self.train_control if name == "sft" else partial(self.train_told, name)
            self.steps.make(f"control/{name}", train)
            shown = "control" if name == "sft" else name
            marks[shown] = self.test(shown, f"control/{name}", tool=name != "off")
        metrics: dict[str, Any] = {}
        for name, (sampled, greedy) in marks.items():
            metrics[f"rounds.first.{name}"] = proportion(sampled["first"])
            metrics |= {f"rounds.{key}.{name}": value for key, value in scores(greedy, self.held_out).items()}
        for name in marks.keys() & {"start", "control"}:
            metrics[f"rounds.first.over_{name}"] = change(marks[name][0]["first"], marks["end"][0]["first"])
        for entry in self.ledger:
            metrics[f"rounds.first.round_{entry['round']}"] = entry["best"]["score"]
        return metrics | self.test_reward(start)

    def test(self, name: str, step: str, tool: bool = True) -> tuple[Marks, Marks]:
        """A model's marks on the held-out problems, sampled and greedy."""
        problems = self.held_out if tool else [problem | {"calls": [], "results": []} for problem in self.held_out]

        def make(out: Path, log: Log) -> dict[str, Any]:
            for kind, greedy in (("sampled", False), ("greedy", True)):
                marks = measure(self.steps[step], problems, self.knobs, self.draws("test"), log, greedy, tool)
                write_text(out / f"{kind}.json", json.dumps({name: each.tolist() for name, each in marks.items()}))
            return {}

        self.steps.make(f"test/{name}", make)
        sampled, greedy = (read_json(self.steps[f"test/{name}"] / f"{kind}.json") for kind in ("sampled", "greedy"))
        return {k: np.array(v) for k, v in sampled.items()}, {k: np.array(v) for k, v in greedy.items()}

    def test_reward(self, start: str) -> dict[str, Any]:
        """The last reward model on held-out answers of the first model, which leaves room for a choice."""
        problems = self.held_out[: max(4, len(self.held_out) // 4)]

        def make(out: Path, log: Log) -> dict[str, Any]:
            self.sample(start, problems, 0, out, log)
            pairs = read_pairs(out / "pairs.jsonl")
            if not pairs:
                return {}
            scorer = Scorer.load(self.steps[self.reward])
            picks = picks_of(scorer, read_drawn(out / "drawn.jsonl"))
            right = proportion(reward.ranks_right(scorer, pairs))
            return {"reward.accuracy": right} | {f"reward.{name}": value for name, value in picks.items()}

        return self.steps.make("test/reward", make) if self.reward else {}

    # -- what the rounds are compared with -----------------------------------------------------------------------------

    def train_control(self, out: Path, log: Log) -> dict[str, Any]:
        """SFT on the first chats alone, with as many tokens as all training had that the rounds' models came from:
        the reward model's too where it chooses."""
        stages = ("sft", "reward", "dpo") if self.knobs.choose == "reward" else ("sft", "dpo")
        entries = [entry[stage] for entry in self.ledger for stage in stages if entry.get(stage)]
        trained = [each["trained"] for entry in entries for each in entry["candidates"] if "trained" in each]
        tokens = sum(
            value["value"] for metrics in trained for name, value in metrics.items() if name.endswith("tokens")
        )
        return self.fit_tokens([self.chats[0]], tokens, out, log)

    def train_told(self, name: str, out: Path, log: Log) -> dict[str, Any]:
        """SFT on the solutions of all problems, with the tool `on` or answered without it, with as many tokens as the
        SFT of a model had that came through all rounds."""
        entries = self.ledger if self.knobs.sft_from == "best" else self.ledger[-1:]
        tokens = sum(entry["sft"]["candidates"][0]["trained"]["sft.tokens"]["value"] for entry in entries)
        return self.fit_tokens([self.data / f"call_{name}.jsonl"], tokens, out, log)

    def fit_tokens(self, chats: list[Path], tokens: int, out: Path, log: Log) -> dict[str, Any]:
        knobs = self.recipe.sft
        steps = max(1, round(tokens / knobs.batch_tokens))
        return sft.fit(knobs, self.draws("control"), self.base, chats, out, log, steps * knobs.batch_rows)


def picks_of(scorer: Scorer, drawn: Sequence[Drawn]) -> dict[str, Figure]:
    """How often the reward model's pick of the first answers is right, beside a random one: pass@1."""
    random, best = best_of(scorer, drawn)
    return {
        "random_pick": figure(round(float(random.mean()), 4), "share", n=len(random)),
        "best_of": proportion(best),
        "gain": change(random, best),
    }


def refusal(gain: Figure | None, samples: int) -> str:
    why = "there is none"
    if gain:
        why = (
            f"its pick of {samples} is right {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] more often "
            "than a random one on held-out problems"
        )
    return f"the reward model does not choose: {why}; answers are chosen by execution"
