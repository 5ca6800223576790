"""Whether llama.cpp's own runtime says what puna says, from the GGUF that `puna export` writes.

    pip install llama-cpp-python
    python benchmarks/gguf_llamacpp.py runs/tiny

Exports the model in every precision, then compares, text by text: the token ids; the logits of every position; the
tokens of greedy continuations. Ours are computed in fp32 from the weights that went into the file. fp32 must agree in
every token id and every greedy token, or the script ends in an error; the others are told.
"""

import argparse
import datetime
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from puna.cli import find_model
from puna.export import FORMS, export_model
from puna.model.llama import Llama
from puna.model.weights import load_hf
from puna.text.chat import Chat, Message, render
from puna.text.tokenizer import Tokenizer

TEXTS = [
    "The llama's wool isn't warm: it's 12,345.67 grams; WE'LL see.\n\n\tDon't\r\n  hurry  ",
    "Größe, naïveté, año, œuvre — «оно» 日本語の文章です。 ภาษาไทย हिन्दी 🦙🦙 ١٢٣٤",
    "def area(r: float) -> float:\n    return 3.14159 * r**2  # πr²\n\n\nprint(area(2))",
    "x" * 70 + " " * 70 + "\n" * 9 + "=" * 30 + "0123456789" * 3,
]
QUESTIONS = ["What is 17 plus 25?", "What is 6 times 7?", "Tell me of llamas.", "Which language is this: Guten Tag"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run or a model directory")
    parser.add_argument("--tokens", type=int, default=64, help="of each greedy continuation")
    parser.add_argument("--long", type=int, default=2000, help="tokens of the longest prompt")
    options = parser.parse_args()
    model = find_model(options.model)
    ours, tokenizer = load_hf(model, torch.float32), Tokenizer.load(model)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in TEXTS]
    for question in QUESTIONS:
        prompts.append(render(Chat([Message("user", question)]), tokenizer, generation_prompt=True).ids)
    long = tokenizer.encode(Path(__file__).read_text())
    prompts.append(([tokenizer.bos_id, *long] * (options.long // len(long) + 1))[: options.long])
    expected = [greedy(ours, prompt, options.tokens, tokenizer) for prompt in prompts]
    with torch.inference_mode():
        logits = [ours(torch.tensor([prompt]))[0].numpy() for prompt in prompts]

    print(f"{datetime.date.today()}, llama-cpp-python {peer_version()}, {len(prompts)} prompts, {model}")
    print(
        f"{'form':6} {'token ids':>10} {'logit error':>12} {'largest':>9} {'greedy tokens':>14} {'whole replies':>14}"
    )
    agreed = False
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS["gguf"]:
            export_model(model, Path(folder) / form, "gguf", form)
            (file,) = (Path(folder) / form).glob("*.gguf")
            right = compare(file, form, tokenizer, prompts, logits, expected)
            agreed = agreed or (form == "fp32" and right)
    if not agreed:
        sys.exit("llama.cpp in fp32 does not agree with puna")
    print("passed: in fp32 every token id and every greedy token is the same")


def compare(
    file: Path,
    form: str,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    logits: list[np.ndarray],
    expected: list[list[int]],
) -> bool:
    """Print a line for one file; whether all token ids and greedy tokens are the same."""
    import llama_cpp  # pyright: ignore[reportMissingImports]

    kind = llama_cpp.GGML_TYPE_F32
    peer = llama_cpp.Llama(
        str(file), n_ctx=4096, n_batch=4096, n_threads=1, logits_all=True, type_k=kind, type_v=kind, verbose=False
    )
    same_ids = sum(peer.tokenize(text.encode(), add_bos=True, special=False) == p for text, p in zip(TEXTS, prompts))
    squares = entries = largest = 0.0
    same = whole = 0
    for prompt, ours, reply in zip(prompts, logits, expected):
        peer.reset()
        peer.eval(prompt)
        change = peer.scores[: len(prompt)] - ours
        squares, entries = squares + float((change**2).mean()), entries + float(ours.var(-1).mean())
        largest = max(largest, float(np.abs(change).max()))
        written = []
        for token in reply:
            written.append(int(peer.scores[peer.n_tokens - 1].argmax()))
            if written[-1] != token:
                break
            peer.eval([token])
        same += sum(a == b for a, b in zip(written, reply))
        whole += written == reply
    total = sum(map(len, expected))
    ids, replies = f"{same_ids}/{len(TEXTS)}", f"{whole}/{len(prompts)}"
    print(f"{form:6} {ids:>10} {(squares / entries) ** 0.5:12.2e} {largest:9.2e} {f'{same}/{total}':>14} {replies:>14}")
    return same_ids == len(TEXTS) and same == total


@torch.inference_mode()
def greedy(model: Llama, prompt: list[int], count: int, tokenizer: Tokenizer) -> list[int]:
    """The likeliest continuation, without a cache: nothing here is the engine's."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] not in tokenizer.stop_ids):
        hidden = model.hidden(torch.tensor([ids]))[:, -1]
        ids.append(int(model.lm_head(hidden).argmax()))
    return ids[len(prompt) :]


def peer_version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        import llama_cpp  # pyright: ignore[reportMissingImports]

        return llama_cpp.__version__


if __name__ == "__main__":
    main()
