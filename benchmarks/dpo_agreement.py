"""DPO's loss and gradients beside TRL's, on pairs without masked tokens: the same weights, reference and pairs.

python benchmarks/dpo_agreement.py --trl PYTHON     # a Python that has trl; ends with 1 when they differ by 1e-5
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttraining import BETA, NLL, PAD, make_model, some_pairs
from safetensors.torch import load_file, save_file

PAIRS = 4
CASES = {"DPO": 0.0, "DPO with the likelihood of the chosen": NLL}


def short_pairs() -> list[tuple[list[int], list[int], list[int]]]:
    """Of a few dozen tokens: in fp32 the rounding of a sum of hundreds of log-probabilities alone is 1e-5 of the loss.
    None is the tokenizer's padding, whose row of the embedding gets no gradient in transformers."""
    return [tuple([512 + token % 4096 for token in part[:32]] for part in pair) for pair in some_pairs(PAIRS)]  # pyright: ignore


def puna_side(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """For each case the loss and the gradients, by Hugging Face's names."""
    from types import SimpleNamespace

    from puna.log import Log
    from puna.model.weights import load_hf
    from puna.posttrain.dpo import Preferences, save_reference
    from puna.posttrain.preferences import Pair
    from puna.recipe import Dpo
    from puna.train.losses import Preference

    names: Any = SimpleNamespace(pad_id=PAD, special={})
    pairs = [Pair(*pair) for pair in short_pairs()]
    rows = Preferences(pairs, None, Dpo.model_validate({"seq_len": 1024, "mask_format": False}), names, 0)
    save_reference(rows, folder / "reference", folder / "reference.npy", Log(folder, "agreement", True))
    rows.reference = np.load(folder / "reference.npy")
    found = {}
    for case, nll in CASES.items():
        model, batch, loss = load_hf(folder / "model", torch.float32), rows.of(range(PAIRS)), Preference(BETA, nll)
        hidden = model.hidden(batch.tokens, documents=batch.documents)
        value = loss(hidden, model.lm_head.weight, batch, loss.counts(batch))
        value.backward()
        gradients = {n if n.startswith("lm_head") else f"model.{n}": p.grad for n, p in model.named_parameters()}
        found[case] = {"loss": value.detach()} | {n: g for n, g in gradients.items() if g is not None}
    return found


def trl_side(folder: Path) -> None:
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Plain(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    data: Any = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in short_pairs()]
    for number, nll in enumerate(CASES.values()):
        model, reference = (
            AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("model", "reference")
        )
        kinds: Any = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll]} if nll else {}
        config = trl.DPOConfig(
            str(folder / "trl"), beta=BETA, bf16=False, use_cpu=True, report_to="none", max_length=None, **kinds
        )
        trainer = Plain(model, reference, args=config, train_dataset=Dataset.from_list(data),
                        processing_class=tokenizer)  # fmt: skip
        value = trainer.compute_loss(trainer.model, trainer.data_collator(data))
        value.backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        save_file({"loss": value.detach()} | gradients, folder / f"trl-{number}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="DPO's loss and gradients beside TRL's")
    parser.add_argument("--trl", required=True, help="a Python that has trl")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        trl_side(arguments.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        (folder / "reference").mkdir()
        for path in (folder / "model").iterdir():
            (folder / "reference" / path.name).write_bytes(path.read_bytes())
        random = torch.Generator().manual_seed(5)
        weights = load_file(folder / "model" / "model.safetensors")
        moved = {n: w * (1 + 0.02 * torch.randn(w.shape, generator=random)) for n, w in weights.items()}
        save_file(moved, folder / "reference" / "model.safetensors", {"format": "pt"})
        ours = puna_side(folder)
        subprocess.run([arguments.trl, __file__, "--trl", "", "--folder", name], check=True, stdout=subprocess.DEVNULL)
        worst = 0.0
        for number, (case, mine) in enumerate(ours.items()):
            theirs = load_file(folder / f"trl-{number}.safetensors")
            assert mine.keys() == theirs.keys()
            error = {n: ((mine[n] - theirs[n]).norm() / theirs[n].norm()).item() for n in mine}
            gradient = max(e for n, e in error.items() if n != "loss")
            worst = max(worst, *error.values())
            figures = {"loss": mine["loss"].item(), "relative error": error["loss"], "worst gradient": gradient}
            print(case, json.dumps(figures))
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main()
