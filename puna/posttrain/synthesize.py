"""The synthesize stage: chats made from the corpus and from arithmetic problems (narrow form of section 4.3).

Tool dialogues are right by construction: the calculator itself gives the result. Operand pairs are divided by their
hash into three groups, for SFT, for preferences and for evaluation, so that a pair which is evaluated on occurs
nowhere in training, whatever the operation, the order or the wording. Questions on documents come from training
documents for SFT and from held-out ones for evaluation.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from puna.log import Log
from puna.posttrain import tool_problems
from puna.posttrain.synthesis import stage as synthesis
from puna.posttrain.tool_problems import WORDS
from puna.recipe import Recipe, Synthesize
from puna.run import figure
from puna.text.message import Message, ToolCall
from puna.tools import CALCULATOR, calculator
from puna.train.batches import rng

LANGUAGES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "pt": "Portuguese",
    "th": "Thai",
}
ASKING = (
    "What is {a} {word} {b}?",
    "What is {a} {op} {b}?",
    "Compute {a} {op} {b}.",
    "How much is {a} {word} {b}?",
    "{a} {op} {b} = ?",
    "Please work out {a} {word} {b} for me.",
    "Calculate {a} {word} {b}",
    "Tell me the result of {a} {op} {b}.",
)
SMALL_TALK = (
    ("Hello!", "Hello! Ask me to work something out, for example 12 * 7."),
    ("Hi", "Hi! Ask me to work something out, for example 12 * 7."),
    ("Who are you?", "I am a small Llama, raised by puna from web pages."),
    ("What are you?", "I am a small Llama, raised by puna from web pages."),
    ("What can you do?", "I can work out arithmetic with a calculator and tell languages apart."),
    ("Thank you!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
)
SNIPPET = 200
"""Characters of a document that a question shows."""


class Problem(NamedTuple):
    a: int
    op: str
    b: int
    question: str

    @property
    def expression(self) -> str:
        return f"{self.a} {self.op} {self.b}"

    @property
    def answer(self) -> str:
        return calculator(self.expression)

    @property
    def reply(self) -> str:
        return f"The answer is {self.answer}."


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Corpus -> sft.jsonl (chats), preference.jsonl and held_out.jsonl (questions with their answers)."""
    knobs, seed = recipe.synthesize, recipe.seed
    tables = [pq.read_table(path) for path in sorted((inputs["corpus"] / "documents").glob("*.parquet"))]
    training = [row for table in tables for row in table.select(["title", "language", "text"]).to_pylist()]
    held_out = pq.read_table(inputs["corpus"] / "held_out.parquet").select(["title", "language", "text"]).to_pylist()

    turns = rng(seed, "turns").integers(1, knobs.max_turns, size=knobs.tool_chats, endpoint=True)
    supply = problems("sft", int(turns.sum()), knobs.max_operand, seed)
    sft = [tool_chat(list(islice(supply, int(n)))) for n in turns]
    sft += [plain_chat(p) for p in problems("sft", knobs.plain_chats, knobs.max_operand, seed + 1)]
    questions = knobs.question_chats * 2 // 5
    asked = [(q["question"], q["answer"]) for q in language_questions(training, questions, seed)]
    asked += [(q["question"], q["choices"][q["answer"]]) for q in title_questions(training, questions, seed)]
    talk = rng(seed, "small talk").integers(len(SMALL_TALK), size=knobs.question_chats - 2 * questions)
    asked += [SMALL_TALK[i] for i in talk]
    # a tool at hand is not a reason to use it (section 4.3.5)
    sft += [_chat(*pair, tools=number % 4 == 0) for number, pair in enumerate(asked)]
    written, figures = synthesis.make(recipe, inputs, out, log, len(sft))
    sft += written
    rng(seed, "sft order").shuffle(sft)  # pyright: ignore[reportArgumentType]

    preference = [
        problem_question(p) for p in problems("preference", knobs.preference_problems, knobs.max_operand, seed)
    ]
    evaluation = [problem_question(p) for p in problems("held_out", knobs.held_out_problems, knobs.max_operand, seed)]
    evaluation += language_questions(held_out, knobs.held_out_questions, seed)
    evaluation += title_questions(held_out, knobs.held_out_questions, seed)
    made = {"sft": sft, "preference": preference, "held_out": evaluation} | call_files(knobs, seed)
    for name, lines in made.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        log.message(f"{name}: {len(lines):,} lines")
    counts = {"synthesize.chats": figure(len(sft)), "synthesize.preference_problems": figure(len(preference))}
    return counts | figures


def call_files(knobs: Synthesize, seed: int) -> dict[str, list[dict[str, Any]]]:
    """What the rounds start from, sample from, decide by and report on, if the recipe asks for chats of calls."""
    if not knobs.call_chats:
        return {}
    counts = {
        "call_sft": ("train", knobs.call_chats * knobs.max_turns),
        "call_prompts": ("train", knobs.call_prompts),
        "call_validation": ("validation", knobs.call_validation),
        "call_held_out": ("held_out", knobs.call_held_out),
    }
    made = {
        name: tool_problems.problems(group, tool_problems.KINDS, count, knobs.max_operand, seed, name)
        for name, (group, count) in counts.items()
    }
    every = made["call_sft"] + made["call_prompts"]
    chats = len(every) // knobs.max_turns
    for name, tool in (("call_on", True), ("call_off", False)):
        made[name] = tool_problems.dialogues(every, chats, knobs.max_turns, seed, tool)
    made["call_sft"] = tool_problems.dialogues(made["call_sft"], knobs.call_chats, knobs.max_turns, seed)
    return made


def group_of(a: int, b: int) -> str:
    """The one group an operand pair is used in; its order does not matter."""
    return {"train": "sft", "validation": "preference"}.get(group := tool_problems.group_of(a, b), group)


def problems(group: str, count: int, max_operand: int, seed: int) -> Iterator[Problem]:
    """Problems whose operand pairs belong to a group. Outside of SFT no two are the same, so they may be fewer."""
    random = rng(seed, "problems", group)
    kinds = [(a, op, b) for a in range(max_operand + 1) for b in range(max_operand + 1) for op in WORDS]
    kinds = [kind for kind in kinds if group_of(kind[0], kind[2]) == group]
    for place in _cycle(random, len(kinds), count if group == "sft" else min(count, len(kinds))):
        a, op, b = kinds[place]
        wording = ASKING[int(random.integers(len(ASKING)))]
        yield Problem(a, op, b, wording.format(a=a, b=b, op=op, word=WORDS[op]))


def tool_chat(problems: list[Problem]) -> dict[str, Any]:
    """Question, call, result, answer; and the next question."""
    messages = []
    for problem in problems:
        messages += [
            Message("user", problem.question),
            Message("assistant", tool_calls=[ToolCall(CALCULATOR.name, {"expression": problem.expression})]),
            Message("tool", problem.answer),
            Message("assistant", problem.reply),
        ]
    return {"messages": [m.to_dict() for m in messages], "tools": [CALCULATOR.schema]}


def plain_chat(problem: Problem) -> dict[str, Any]:
    """The same question when no tool is at hand."""
    return _chat(problem.question, problem.reply)


def problem_question(problem: Problem) -> dict[str, Any]:
    return {"task": "tools.single", "question": problem.question, "answer": problem.answer}


def language_questions(documents: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Which language is this? As often in each language that the documents have."""
    random = rng(seed, "language questions", len(documents))
    by_language: dict[str, list[str]] = {}
    for document in documents:
        if document["language"] in LANGUAGES and len(document["text"]) >= SNIPPET:
            by_language.setdefault(document["language"], []).append(document["text"])
    languages = sorted(by_language)
    questions = {}
    for number in range(4 * count if languages else 0):  # the same cut may come twice; it is asked once
        language = languages[number % len(languages)]
        texts = by_language[language]
        snippet = _cut(texts[int(random.integers(len(texts)))], random)
        question = f"Which language is this?\n\n{snippet}"
        questions[question] = {"task": "chat.language", "question": question, "answer": LANGUAGES[language]}
        if len(questions) == count:
            break
    return list(questions.values())


def title_questions(documents: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Which title fits? The page's own and three others' as choices; `answer` is the place of the right one."""
    random = rng(seed, "title questions", len(documents))
    titled = [(clean_title(d["title"] or ""), d["text"]) for d in documents if len(d["text"]) >= SNIPPET]
    titled = [(title, text) for title, text in titled if title and len(title) <= 80]
    titles = sorted({title for title, _ in titled})
    if len(titles) < 4:
        return []
    questions = []
    for place in _cycle(random, len(titled), min(count, 4 * len(titled))):
        title, text = titled[place]
        others = [titles[i] for i in random.choice(len(titles), 4, replace=False) if titles[i] != title]
        choices = [title, *others[:3]]
        random.shuffle(choices)
        question = f"Give this text a title.\n\n{_cut(text, random, start=True)}"
        answer = choices.index(title)
        questions.append({"task": "chat.title", "question": question, "choices": choices, "answer": answer})
    return questions


def clean_title(title: str) -> str:
    """A page's title without the name of the site behind a dash or a bar."""
    for mark in (" — ", " – ", " | ", " - ", " :: "):
        title = title.partition(mark)[0]
    return " ".join(title.split())


def _chat(question: str, answer: str, tools: bool = False) -> dict[str, Any]:
    messages = [Message("user", question).to_dict(), Message("assistant", answer).to_dict()]
    return {"messages": messages} | ({"tools": [CALCULATOR.schema]} if tools else {})


def _cut(text: str, random: np.random.Generator, start: bool = False) -> str:
    at = 0 if start else int(random.integers(max(1, len(text) - SNIPPET)))
    return " ".join(text[at : at + SNIPPET].split())


def _cycle(random: np.random.Generator, items: int, count: int) -> Iterator[int]:
    """`count` numbers below `items`, none a second time before every other came once."""
    order: list[int] = []
    for _ in range(count if items else 0):
        order = order or random.permutation(items).tolist()
        yield order.pop()
