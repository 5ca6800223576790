"""lm-evaluation-harness through puna's server and through its own Hugging Face backend, in fp32, request by request.

    puna serve MODEL --dtype fp32 &
    python benchmarks/lm_eval_agreement.py MODEL TEXT ... [--url http://127.0.0.1:8000] [--requests 240]

Needs "lm-eval[hf,api]"; puna need not be installed beside it. Requests are pieces of the text files: half of them are
continued as the text goes on, half as the model itself would, greedily, so that greedy flags of both kinds occur.
Fails where a log-likelihood differs by more than 1e-4 (a rolling one by a millionth), or a greedy flag or a generated
text at all.
"""

import argparse
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
MAX_LEN = 4096
BOUND = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=240)
    arguments = parser.parse_args()

    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.models.openai_completions import LocalCompletionsAPI  # pyright: ignore[reportMissingImports]

    path = str(arguments.model)
    local = HFLM(
        pretrained=path, dtype="float32", device="cpu", batch_size=8, max_length=MAX_LEN, add_bos_token=True,
        softmax_dtype="float32",
    )  # fmt: skip
    served = LocalCompletionsAPI(
        base_url=f"{arguments.url}/v1/completions", model=arguments.model.resolve().name, tokenizer=path,
        tokenizer_backend="huggingface", batch_size=8, num_concurrent=4, max_length=MAX_LEN, add_bos_token=True,
    )  # fmt: skip

    def instances(kind: str, what: list[tuple[Any, ...]]) -> list[Any]:
        return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(what)]

    def both(kind: str, what: list[tuple[Any, ...]]) -> list[tuple[Any, Any]]:
        return list(zip(*(getattr(model, kind)(instances(kind, what)) for model in (local, served))))

    pieces = list(cut(arguments.texts, arguments.requests))
    contexts = [(context, {"until": ["\n\n"], "max_gen_toks": 24, "temperature": 0}) for context, _ in pieces[::2]]
    generated = both("generate_until", contexts)
    own = [(context, text) for (context, _), (text, _) in zip(contexts, generated) if text]
    likelihoods = both("loglikelihood", pieces[1::2] + own)
    rolling = both("loglikelihood_rolling", [(context[:6000],) for context, _ in pieces[:8]])

    differences = [abs(a[0] - b[0]) for a, b in likelihoods]
    # A rolling one is a sum over thousands of tokens, which fp32 holds to a share of itself.
    shares = [abs(a - b) / abs(a) for a, b in rolling]
    flags = [(a[1], b[1]) for a, b in likelihoods]
    wrong_flags, wrong_texts = (sum(a != b for a, b in pairs) for pairs in (flags, generated))
    print(f"{len(likelihoods)} log-likelihoods, {len(rolling)} rolling, {len(generated)} generations")
    print(f"largest difference of a log-likelihood: {max(differences):.2e} (bound {BOUND:.0e})")
    print(f"largest of a rolling one: {max(shares):.1e} of it (bound 1e-6)")
    print(f"greedy: {sum(a for a, _ in flags)} of {len(flags)}; flags that differ: {wrong_flags}")
    print(f"generated texts that differ: {wrong_texts}")
    sys.exit(bool(max(differences) > BOUND or max(shares) > 1e-6 or wrong_flags or wrong_texts))


def cut(paths: list[Path], count: int) -> Iterator[tuple[str, str]]:
    """(context, continuation) of many lengths; some contexts are empty."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in paths)
    draw = random.Random(0)
    for i in range(count):
        start = draw.randrange(len(text) - 8000)
        length = draw.choice([0, 20, 100, 400, 1500, 5000]) if i % 2 else draw.choice([20, 100, 400, 1500])
        end = start + length
        # The harness moves a context's trailing spaces to the continuation; here the pieces stay as they are.
        context = text[start:end].rstrip()
        yield context, " " + text[end : end + draw.choice([3, 12, 60])].strip() + "."


if __name__ == "__main__":
    main()
