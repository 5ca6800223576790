"""The reward model: a Llama whose output is one number, and the scorer that reads chats with it (section 4.1.2).

A conversation is laid out as its prompt and then its responses, one after the other in one row: its branches
(model/llama.py). The score of each is what it would be in a row of its own, while the prompt is read once.

On disk it is a Hugging Face directory of a LlamaForSequenceClassification with one label, which scores the last token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from puna.errors import PunaError
from puna.model.llama import BRANCH, Llama, LlamaConfig
from puna.model.weights import check_tensors, config_from_hf, config_to_hf, read_json, write_json
from puna.text.chat import Chat, render
from puna.text.tokenizer import Tokenizer

ARCHITECTURE = "LlamaForSequenceClassification"


class RewardModel(Llama):
    """A Llama whose output matrix has one row: the head, `score` on disk."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.dim, 1, bias=False)

    @classmethod
    def from_language_model(cls, model: Llama) -> Self:
        """The same transformer, in the same memory; every score is zero."""
        with torch.device("meta"):
            reward = cls(model.config)
        state = model.state_dict()
        head = torch.zeros_like(state["lm_head.weight"][:1])
        reward.load_state_dict(state | {"lm_head.weight": head}, assign=True)
        reward.rope = model.rope
        return reward


def save_reward(
    model: RewardModel, tokenizer: Tokenizer, directory: str | Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a Hugging Face directory that transformers loads as a sequence classifier."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {_hf_name(name): tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    save_file(state, directory / "model.safetensors", {"format": "pt"})
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    config = config_to_hf(model.config, dtype) | {"architectures": [ARCHITECTURE], "pad_token_id": tokenizer.pad_id}
    write_json(directory / "config.json", config | labels)
    tokenizer.save(directory, chat=True)


def load_reward(directory: str | Path, dtype: torch.dtype | None = None) -> RewardModel:
    """The model that `save_reward` wrote; `dtype` None keeps the file's."""
    directory = Path(directory)
    raw = read_json(directory / "config.json")
    if raw.get("architectures") != [ARCHITECTURE]:
        raise PunaError(f"{directory} is of architecture {raw.get('architectures')}, a reward model of {ARCHITECTURE}")
    model = RewardModel(config_from_hf(raw | {"architectures": None}, directory / "config.json"))
    path = directory / "model.safetensors"
    if not path.is_file():
        raise PunaError(f"{directory} has no model.safetensors; the folder of a reward model has one")
    state = load_file(path)
    expected = {_hf_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_tensors({name: (tuple(tensor.shape), path) for name, tensor in state.items()}, expected, directory)
    model.load_state_dict({name: state[_hf_name(name)] for name in model.state_dict()}, assign=True)
    return model.to(dtype)


def _hf_name(name: str) -> str:
    return "score.weight" if name == "lm_head.weight" else f"model.{name}"


class Scorer:
    """Scores chats, higher is better. The numbers compare answers to one prompt; they have no unit."""

    def __init__(self, model: RewardModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def load(cls, directory: str | Path) -> "Scorer":
        """A scorer from a Hugging Face directory: fp32 on a CPU, bf16 on a GPU."""
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        return cls(load_reward(directory, dtype).to(device), Tokenizer.load(directory))

    def score(self, chats: Sequence[Chat]) -> list[float]:
        """The score of each chat's last message, which has to be the assistant's."""
        for number, chat in enumerate(chats):
            if not chat.messages or chat.messages[-1].role != "assistant":
                raise PunaError(f"chat {number} does not end with the assistant's message, which is what is scored")
        rows = [render(chat, self.tokenizer).ids for chat in chats]
        return [score for (score,) in self.score_responses([(row[:1], [row[1:]]) for row in rows])]

    @torch.inference_mode()
    def score_responses(
        self, conversations: Sequence[tuple[list[int], Sequence[list[int]]]], tokens: int = 8192
    ) -> list[list[float]]:
        """The score of every response of (prompt ids, [response ids]); about so many tokens at once."""
        device = self.model.lm_head.weight.device
        sizes = [len(prompt) + sum(map(len, responses)) for prompt, responses in conversations]
        order = sorted(range(len(sizes)), key=lambda i: sizes[i])
        scores: list[list[float]] = [[] for _ in sizes]
        while order:
            count = max(1, tokens // sizes[order[0]])
            while count > 1 and count * sizes[order[:count][-1]] > tokens:
                count -= 1
            numbers, order = order[:count], order[count:]
            room = sizes[numbers[-1]]
            rows = [branches(*conversations[i]) for i in numbers]
            ids = torch.tensor([row + [0] * (room - len(row)) for row, _, _ in rows], device=device)
            documents = [row + [1] * (room - len(row)) for _, row, _ in rows]
            hidden = self.model.hidden(ids, documents=torch.tensor(documents, device=device))
            for i, values, (_, _, ends) in zip(numbers, self.model.lm_head(hidden)[:, :, 0].float(), rows):
                scores[i] = values[ends].tolist()
        return scores


def branches(prompt: list[int], responses: Sequence[list[int]]) -> tuple[list[int], list[int], list[int]]:
    """A conversation as document 0 of a row: its ids, their document and branch, and the place of each response's last
    token."""
    if not prompt or not all(responses):
        raise PunaError("a prompt and its responses are scored together, none of them empty")
    ids, numbers, ends = list(prompt), [0] * len(prompt), []
    for number, response in enumerate(responses, 1):
        ids += response
        numbers += [number * BRANCH] * len(response)
        ends.append(len(ids) - 1)
    return ids, numbers, ends
