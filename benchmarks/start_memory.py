"""How much memory each process takes to start a model that is cut, beside the size of the whole.

    python benchmarks/start_memory.py

The model has 119 million parameters (478 MB in fp32). Eight processes on CPUs draw it or read it from a Hugging Face
directory, under several layouts; each tells by how much its resident memory rose at most.
"""

import resource
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from puna.model.llama import Llama, LlamaConfig, count_parameters
from puna.model.weights import empty_model, load_hf, save_hf
from puna.parallel.parts import Parts
from puna.parallel.place import local
from puna.recipe import Training
from puna.recipe.layout import Layout
from puna.train.launch import World, launch
from puna.train.losses import NextToken

CONFIG = LlamaConfig(16_384, dim=768, layers=15, heads=12, kv_heads=4, ffn_dim=2048)
PROCESSES = 8
LAYOUTS = {
    "tp 2, pp 2, dp 2": Layout(tp=2, pp=2),
    "pp 4, dp 2": Layout(pp=4),
    "tp 4, dp 2": Layout(tp=4),
    "dp 8 (FSDP)": Layout(shard=8),
}


def start(world: World, layout: Layout, source: Path | None, folder: Path) -> None:
    """One process: builds its part, and writes what it took into a file."""
    warnings.simplefilter("ignore")  # torch's, about itself
    options = Training.model_validate({"seq_len": 64, "batch_rows": 8, "precision": "fp32", "layout": layout})
    dist.barrier()
    before = peak()
    model = load_hf(source) if source else empty_model(CONFIG)
    parts = Parts(model, NextToken(), options, world, compiled=False)
    if not source:
        parts.fill(model.draw_weights(torch.Generator().manual_seed(0)))
    held = 4 * sum(local(parameter).numel() for parameter in parts.parameters.values())
    (folder / str(world.rank)).write_text(f"{held} {peak() - before}")


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, on_disk = Path(name), Path(name) / "model"
        launch(save, 1, on_disk)
        print(f"the whole: {4 * count_parameters(CONFIG) / 1e6:.0f} MB in fp32, the largest tensor "
              f"{4 * CONFIG.vocab_size * CONFIG.dim / 1e6:.0f} MB")  # fmt: skip
        for title, layout in LAYOUTS.items():
            for how, source in (("drawn", None), ("read", on_disk)):
                launch(start, PROCESSES, layout, source, folder)
                told = [[int(x) / 1e6 for x in (folder / str(r)).read_text().split()] for r in range(PROCESSES)]
                held, rose = [x[0] for x in told], [x[1] for x in told]
                print(f"{title:18} {how:6} parts of {min(held):.0f}-{max(held):.0f} MB, "
                      f"peak above the start {min(rose):.0f}-{max(rose):.0f} MB", flush=True)  # fmt: skip


def save(world: World, folder: Path) -> None:
    model = Llama(CONFIG).init_weights(torch.Generator().manual_seed(0))
    save_hf(model, CONFIG, folder, dtype=torch.bfloat16, shard_bytes=5e7, bos_id=0, eos_ids=[1], pad_id=2)


if __name__ == "__main__":
    main()
