"""The evals stage: what each model of the run can do on held-out data, with intervals (section 5).

Each of base, SFT and DPO model gets the same questions, so a change from one to the next is a paired difference.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from puna.errors import PunaError
from puna.evals.compression import Bigram, model_bits, training_tokens, xz_bits
from puna.evals.score import change, proportion, ratio
from puna.infer.engine import Engine, Sampling
from puna.infer.pool import run_jobs
from puna.log import Log
from puna.recipe import Evals, Recipe
from puna.run import figure
from puna.text.chat import Chat, Message, parse, render
from puna.text.tokenizer import Tokenizer
from puna.tools import CALCULATOR, last_number, run_call

MODELS = ("pretrain", "sft", "dpo", "rounds")
"""In the order of their making; the last that a run has is its result."""
Answered = tuple[str, np.ndarray, list[dict[str, Any]]]
"""A task, whether each answer is right, and the replies."""


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Models, held-out text and questions -> figures, and samples.jsonl with every reply."""
    with (inputs["synthesize"] / "held_out.jsonl").open(encoding="utf-8") as lines:
        questions = [json.loads(line) for line in lines]
    models = [name for name in MODELS if name in inputs]
    metrics = {}
    right: dict[tuple[str, str], np.ndarray] = {}
    tasks = dict.fromkeys(question["task"] for question in questions)
    of_task = [[question for question in questions if question["task"] == task] for task in tasks]
    jobs = [(inputs[name], asked, recipe.evals, recipe.seed) for name in models for asked in of_task]
    results = run_jobs(answer_task, jobs, log, "questions")
    with (out / "samples.jsonl").open("w", encoding="utf-8") as samples:
        for place, answered in enumerate(results):
            name = models[place // len(of_task)]
            for task, marks, replies in answered:
                right[name, task] = marks
                metrics[f"{task}.{name}"] = proportion(marks)
                for reply in replies:
                    samples.write(json.dumps({"model": name, "task": task, **reply}, ensure_ascii=False) + "\n")
    for task in [task for name, task in right if name == models[-1]]:
        metrics[task] = metrics[f"{task}.{models[-1]}"]
        metrics[f"{task}.change"] = change(right["sft", task], right["dpo", task])
    return metrics | bits_per_byte(recipe, inputs, models, log)


def answer_task(model: Path, asked: list[dict[str, Any]], knobs: Evals, seed: int) -> list[Answered]:
    """A model's answers to the questions of one task."""
    return list(answer(Engine.load(model), asked, knobs, seed))


def answer(engine: Engine, asked: list[dict[str, Any]], knobs: Evals, seed: int) -> Iterator[Answered]:
    task, greedy = asked[0]["task"], Sampling(knobs.max_tokens)
    if task == "tools.single":
        sampled = Sampling(knobs.max_tokens, temperature=1.0, seed=seed)
        yield (f"{task}.on", *solve(engine, asked, greedy, knobs, tool=True))
        yield (f"{task}.sampled", *solve(engine, asked, sampled, knobs, tool=True))
        yield (f"{task}.off", *solve(engine, asked, greedy, knobs, tool=False))
    elif "choices" in asked[0]:
        yield (task, *choose_reply(engine, asked))
    else:
        replies = generate(engine, [chat_of(q["question"]) for q in asked], greedy, knobs)
        marks = np.array([parse(r, engine.tokenizer).content.strip() == q["answer"] for r, q in zip(replies, asked)])
        yield task, marks, tell(engine, asked, replies, marks)


def solve(engine: Engine, problems: list[dict[str, Any]], sampling: Sampling, knobs: Evals, tool: bool):
    """Arithmetic: with the tool, the model's own call is executed and its reply to the result is what counts."""
    chats = [chat_of(p["question"], tool) for p in problems]
    replies = generate(engine, chats, sampling, knobs)
    if tool:
        going = []
        for i, reply in enumerate(replies):
            message = parse(reply, engine.tokenizer)
            if len(message.tool_calls) == 1 and reply[-1] in engine.tokenizer.stop_ids:
                result = run_call(message.tool_calls[0], [CALCULATOR])
                chats[i].messages += [message, Message("tool", result)]
                going.append(i)
        after = generate(engine, [chats[i] for i in going], sampling, knobs)
        finals = dict(zip(going, after))
        called = {i: engine.tokenizer.decode(replies[i]) for i in going}
    else:
        finals, called = dict(enumerate(replies)), {}
    marks = np.zeros(len(problems), bool)
    told = []
    for i, problem in enumerate(problems):
        text = parse(finals[i], engine.tokenizer).content if i in finals else engine.tokenizer.decode(replies[i])
        marks[i] = i in finals and last_number(text) == problem["answer"]
        told.append({"question": problem["question"], "call": called.get(i), "reply": text, "right": bool(marks[i])})
    return marks, told


def choose_reply(engine: Engine, questions: list[dict[str, Any]]):
    """Several replies to choose from: the one whose tokens are likeliest on average is the model's."""
    rows, starts = [], []
    for question in questions:
        chat = chat_of(question["question"])
        prompt = render(chat, engine.tokenizer, generation_prompt=True).ids
        for choice in question["choices"]:
            rows.append([*prompt, *engine.tokenizer.encode(choice), engine.tokenizer.eot_id])
            starts.append(len(prompt))
    scores = [row[start - 1 :].mean().item() for row, start in zip(engine.log_probs(rows), starts)]
    marks, told, at = np.zeros(len(questions), bool), [], 0
    for i, question in enumerate(questions):
        choices = question["choices"]
        picked = int(np.argmax(scores[at : at + len(choices)]))
        at += len(choices)
        marks[i] = picked == question["answer"]
        told.append({"question": question["question"], "reply": choices[picked], "right": bool(marks[i])})
    return marks, told


def chat_of(question: str, tool: bool = False) -> Chat:
    return Chat([Message("user", question)], tools=[CALCULATOR.schema] if tool else None)


def generate(engine: Engine, chats: list[Chat], sampling: Sampling, knobs: Evals) -> list[list[int]]:
    prompts = [render(chat, engine.tokenizer, generation_prompt=True).ids for chat in chats]
    return [replies[0] for replies in engine.generate(prompts, sampling, batch=knobs.batch)]


def tell(engine: Engine, asked: list[dict[str, Any]], replies: list[list[int]], marks: np.ndarray):
    texts = [engine.tokenizer.decode(reply) for reply in replies]
    return [{"question": q["question"], "reply": t, "right": bool(m)} for q, t, m in zip(asked, texts, marks)]


def bits_per_byte(recipe: Recipe, inputs: dict[str, Path], models: list[str], log: Log) -> dict[str, Any]:
    """Bits per byte of held-out text: the models', a bigram model's and xz's."""
    texts = held_out_texts(inputs["corpus"] / "held_out.parquet", recipe.pretrain.mix, recipe.evals.held_out_bytes)
    if not texts:
        raise PunaError("the corpus has no held-out text in any part of pretrain.mix; raise corpus.held_out")
    sizes = np.array([len(text) for text in texts], float)
    tokenizer = Tokenizer.load(inputs["pretrain"])
    documents = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch([text.decode() for text in texts])]
    metrics = {"eval.held_out": figure(float(sizes.sum()), "bytes", n=len(texts))}
    seed, unit = recipe.seed, "bits/byte"
    parts = np.array_split(np.arange(len(documents)), 4)
    jobs = [(inputs[m], [documents[i] for i in part], recipe.pretrain.seq_len) for m in models for part in parts]
    results = run_jobs(read_text, jobs, log, "held-out text")
    for place, name in enumerate(models):
        bits = np.concatenate(results[place * len(parts) : (place + 1) * len(parts)])
        metrics[f"eval.bits_per_byte.{name}"] = ratio(bits, sizes, unit, seed)
    metrics["eval.bits_per_byte"] = metrics["eval.bits_per_byte.pretrain"]
    shards = json.loads((inputs["shards"] / "shards.json").read_text())
    trained = [part for part, share in recipe.pretrain.mix.items() if share > 0]
    tokens = training_tokens(inputs["shards"], trained, shards["dtype"])
    bigram = Bigram(tokens, tokenizer.vocab_size).best_bits(documents)
    metrics["eval.bits_per_byte.bigram"] = ratio(bigram, sizes, unit, seed)
    metrics["eval.bits_per_byte.xz"] = figure(round(xz_bits(texts) / sizes.sum(), 4), unit, n=len(texts))
    return metrics


def read_text(model: Path, documents: list[list[int]], window: int) -> np.ndarray:
    """Bits of each document under a model, [documents]."""
    return model_bits(Engine.load(model), documents, window) if documents else np.zeros(0)


def held_out_texts(path: Path, mix: dict[str, float], limit: int) -> list[bytes]:
    """Held-out documents, mixed as the training text is: each part gives its share of `limit` bytes at most."""
    table = pq.read_table(path).select(["id", "part", "text"]).to_pylist()
    room = {part: share * limit for part, share in mix.items()}
    texts = []
    for row in sorted(table, key=lambda row: row["id"]):
        if room.get(row["part"], 0) > 0:
            texts.append(row["text"].encode())
            room[row["part"]] -= len(texts[-1])
    return texts
