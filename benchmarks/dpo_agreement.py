"""DPO's loss and gradients beside TRL's, on pairs without masked tokens: the same weights, reference and pairs.

    python benchmarks/dpo_agreement.py --trl PYTHON     # a Python that has trl

Both are run in fp32 and in fp64. Where the fp64 runs agree they are the truth that each fp32 run is held against, which
shows whose rounding a difference is. Ends with 1 when fp32 differs by more than 1e-5, or fp64 by more than 1e-10.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttraining import BETA, NLL, PAD, make_model, some_pairs
from safetensors.torch import load_file, save_file

PAIRS = 4
LENGTHS = {"short": 32, "long": 512}
"""Tokens of a prompt or a response, at most."""
TERMS = {"DPO": 0.0, "with likelihood": NLL}
CASES = list(product(LENGTHS, TERMS))
SIDES = list(product(("puna", "trl"), ("fp32", "fp64")))
Values = dict[str, np.ndarray]
"""The loss, and the gradients by Hugging Face's names."""


def pairs_of(length: str) -> list[tuple[list[int], list[int], list[int]]]:
    """Pairs without the tokenizer's padding, whose row of the embedding gets no gradient in transformers."""
    most = LENGTHS[length]
    return [tuple([512 + token % 4096 for token in part[:most]] for part in pair) for pair in some_pairs(PAIRS)]  # pyright: ignore


def compute_in_fp64() -> None:
    """Whatever asks for fp32 in this process gets fp64: models name fp32 where bf16 would be too coarse."""
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double


def puna_side(folder: Path) -> list[Values]:
    from types import SimpleNamespace

    from puna.log import Log
    from puna.model.weights import load_hf
    from puna.posttrain.dpo import Preferences, save_reference
    from puna.posttrain.preferences import Pair
    from puna.recipe import Dpo
    from puna.train.attention import attention_in, document_attention
    from puna.train.losses import Preference

    names: Any = SimpleNamespace(pad_id=PAD, special={})
    knobs = Dpo.model_validate({"seq_len": 1024, "mask_format": False})
    found = []
    for length, term in CASES:
        rows = Preferences([Pair(*pair) for pair in pairs_of(length)], None, knobs, names, 0)
        save_reference(rows, folder / "reference", folder / "reference.npy", Log(folder, "agreement", True))
        rows.reference = np.load(folder / "reference.npy")
        model, batch = load_hf(folder / "model", torch.float32), rows.of([[i] for i in range(PAIRS)]).to_last_label()
        loss = Preference(BETA, TERMS[term])
        with attention_in(model, document_attention):  # as in training
            value = loss(model.hidden(batch.tokens, documents=batch.documents), model.lm_head.weight, batch,
                         loss.counts(batch))  # fmt: skip
            value.backward()
        gradients = {n if n.startswith("lm_head") else f"model.{n}": p.grad for n, p in model.named_parameters()}
        found.append({"loss": value.detach().numpy()} | {n: g.numpy() for n, g in gradients.items() if g is not None})
    return found


def trl_side(folder: Path) -> list[Values]:
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Plain(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    found = []
    for length, term in CASES:
        data: Any = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs_of(length)]
        model, reference = (
            AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("model", "reference")
        )
        kinds: Any = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, TERMS[term]]} if TERMS[term] else {}
        config = trl.DPOConfig(
            str(folder / "trl"), beta=BETA, bf16=False, use_cpu=True, report_to="none", max_length=None, **kinds
        )
        trainer = Plain(model, reference, args=config, train_dataset=Dataset.from_list(data),
                        processing_class=tokenizer)  # fmt: skip
        value = trainer.compute_loss(trainer.model, trainer.data_collator(data))
        value.backward()
        gradients = {n: p.grad.numpy() for n, p in trainer.model.named_parameters() if p.grad is not None}
        found.append({"loss": value.detach().numpy()} | gradients)
    return found


def make_models(folder: Path) -> None:
    """The model, and as its reference one with weights 2% off; in files of fp64, which hold fp32 values."""
    make_model(folder)
    (folder / "reference").mkdir()
    for path in (folder / "model").iterdir():
        (folder / "reference" / path.name).write_bytes(path.read_bytes())
    random = torch.Generator().manual_seed(5)
    weights = load_file(folder / "model" / "model.safetensors")
    moved = {n: w * (1 + 0.02 * torch.randn(w.shape, generator=random)) for n, w in weights.items()}
    for name, values in (("model", weights), ("reference", moved)):
        doubles = {n: w.double() for n, w in values.items()}
        save_file(doubles, folder / name / "model.safetensors", {"format": "pt"})


def errors(some: Values, others: Values) -> tuple[float, float]:
    """Relative differences: of the loss, and the largest of a gradient."""
    assert some.keys() == others.keys()
    found = {n: float(np.linalg.norm(some[n] - others[n]) / np.linalg.norm(others[n])) for n in some}
    return found.pop("loss"), max(found.values())


def report(found: dict[tuple[str, str], list[Values]]) -> bool:
    """Print the table; whether all is within the limits."""
    shown = {
        "puna and TRL, fp64": (("puna", "fp64"), ("trl", "fp64"), 1e-10),
        "puna and TRL, fp32": (("puna", "fp32"), ("trl", "fp32"), 1e-5),
        "puna, fp32 and fp64": (("puna", "fp32"), ("puna", "fp64"), 1e-5),
        "TRL, fp32 and fp64": (("trl", "fp32"), ("trl", "fp64"), 1e-5),
    }
    print("| relative difference: of the loss, of the worst gradient |", " | ".join(" ".join(c) for c in CASES), "|")
    print("|" + "---|" * (1 + len(CASES)))
    good = True
    for name, (one, other, limit) in shown.items():
        pairs = [errors(*both) for both in zip(found[one], found[other])]
        print("|", name, "|", " | ".join(f"{loss:.1e}, {gradient:.1e}" for loss, gradient in pairs), "|")
        good = good and max(map(max, pairs)) <= limit
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description="DPO's loss and gradients beside TRL's")
    parser.add_argument("--trl", required=True, help="a Python that has trl")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, precision = arguments.side
        torch.set_num_threads(1)
        if precision == "fp64":
            compute_in_fp64()
        for number, values in enumerate({"puna": puna_side, "trl": trl_side}[side](arguments.folder)):
            path = arguments.folder / f"{side}-{precision}-{number}.npz"
            np.savez(path, **values)  # pyright: ignore[reportArgumentType]
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        found = {}
        for side, precision in SIDES:
            python = sys.executable if side == "puna" else arguments.trl
            command = [python, __file__, "--trl", "", "--side", side, precision, "--folder", name]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            files = [folder / f"{side}-{precision}-{number}.npz" for number in range(len(CASES))]
            found[side, precision] = [dict(np.load(file)) for file in files]
        loss = {" ".join(case): float(values["loss"]) for case, values in zip(CASES, found["puna", "fp64"])}
        print("losses", json.dumps(loss))
        sys.exit(not report(found))


if __name__ == "__main__":
    main()
