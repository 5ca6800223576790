"""LoRA (arXiv 2106.09685): y = W x + scale * B (A x), where W is frozen and only the small A and B are trained.

Adapters are put into a Llama from outside, by module name, and merged into its matrices afterwards, so that what a
stage hands on is an ordinary model. Beside it the adapter is kept in PEFT's form, to be laid over the stage's base.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from puna.model.llama import Llama
from puna.model.weights import write_json
from puna.recipe.lora import Lora


class LoraLinear(nn.Linear):
    """A frozen matrix with an adapter: x [..., in_features] -> [..., out_features].

    The weight keeps its name; the factors A [rank, in] and B [out, rank] carry PEFT's. B starts at zero, so a new
    adapter changes nothing; A is drawn uniformly within 1 / sqrt(in), as there.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator | None = None) -> None:
        nn.Module.__init__(self)  # the weight is taken over, not made
        self.in_features, self.out_features, self.scale = linear.in_features, linear.out_features, scale
        self.weight, self.bias = linear.weight.requires_grad_(False), None
        self.lora_A = nn.Linear(self.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False)
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.lora_A.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight) + self.lora_B(self.lora_A(input)) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain matrix that does the same; the sum is taken in fp32 and in the weight's own memory."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        update = self.lora_B.weight.float() @ self.lora_A.weight.float()
        plain.weight = nn.Parameter(self.weight.copy_(self.weight.float() + update * self.scale))
        return plain


def add_adapters(model: Llama, lora: Lora, seed: int, head: bool = False) -> Llama:
    """Freeze the model and put adapters into it, in place; rank 0 leaves it as it is.

    `head`: train the output matrix all the same, which is a reward model's head.
    """
    if lora.rank == 0:
        return model
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name.rpartition(".")[2] in lora.targets:
            model.set_submodule(name, LoraLinear(linear, lora.rank, lora.scale, generator))
    if head:
        model.lm_head.requires_grad_(True)
    return model


def merge_adapters(model: Llama) -> Llama:
    """Turn every adapted matrix into a plain one, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, module.merged())
    return model


def save_adapters(model: Llama, lora: Lora, folder: Path, head: bool = False) -> None:
    """Write what was trained as a folder that `peft.PeftModel.from_pretrained(BASE, folder)` reads, in fp32.

    The base is not named: it is the model that the stage began with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        _peft_name(name): parameter.detach().float().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "target_modules": list(lora.targets),
        "modules_to_save": ["score"] if head else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)


def finish_adapters(model: Llama, lora: Lora, folder: Path, head: bool = False) -> Llama:
    """Save the adapters to `folder` and merge them, in place; rank 0 has none."""
    if lora.rank == 0:
        return model
    save_adapters(model, lora, folder, head)
    return merge_adapters(model)


def _peft_name(name: str) -> str:
    return f"base_model.model.{'score.weight' if name == 'lm_head.weight' else f'model.{name}'}"
