"""What a recipe will take, by arithmetic: no data is read and no model built.

FLOPs are 6 for each matrix parameter and token plus attention (PaLM's convention, as in puna/model/llama.py). Memory
is for one processor that holds the whole model, as data parallelism does: fp32 weights, gradients and two AdamW
moments (16 bytes a parameter), the activations of one micro-batch and one chunk of logits.
"""

from collections.abc import Iterator

from rich.table import Table

from puna.machine import Machine
from puna.model.llama import LlamaConfig, count_parameters, flops_per_token
from puna.pretrain import model_config
from puna.recipe import Recipe, Training
from puna.train.losses import CHUNK

STATE_BYTES = 16
CHAT_TOKENS = 280
"""Tokens of a synthesized chat with its tools, measured on the tiny recipe."""


def plan_table(recipe: Recipe, machine: Machine) -> Iterator[str | Table]:
    """The plan as lines and a table for the terminal."""
    config = model_config(recipe.model, recipe.tokenizer.vocab_size)
    yield f"[bold]{recipe.name}[/]: {recipe.model.preset}, {count_parameters(config):,} parameters"
    yield (
        f"  {config.layers} layers, dim {config.dim:,}, FFN {config.ffn_dim:,}, {config.heads} heads, "
        f"{config.kv_heads} KV heads, vocabulary {config.vocab_size:,}"
    )
    yield (
        f"on {machine.name}: {machine.processors} x {machine.flops / 1e12:,.2f} TFLOP/s and "
        f"{machine.memory / 1e9:.0f} GB, at {machine.utilization:.0%} utilization ({machine.source})"
    )
    table = Table("stage", "tokens", "FLOPs", "memory a processor", "time", box=None)
    rows = dict(stage_tokens(recipe))
    for name in ("corpus", "tokenizer", "shards", "synthesize"):
        table.add_row(name, "", "", "", "[dim]depends on the source[/]")
    for name, (knobs, tokens, passes) in rows.items():
        flops = tokens * flops_per_token(config, knobs.seq_len) * passes
        need = memory(config, knobs)
        fits = "" if need < machine.memory else " [red]does not fit[/]"
        seconds = flops / (machine.flops * machine.utilization * machine.processors)
        table.add_row(name, f"{tokens:,.0f}", f"{flops:.3g}", f"{need / 1e9:,.2f} GB{fits}", duration(seconds))
    yield table
    if any(memory(config, knobs) >= machine.memory for knobs, _, _ in rows.values()):
        yield "[dim]each processor holds the whole model: a smaller model, a shorter row or more memory is needed[/]"


def stage_tokens(recipe: Recipe) -> Iterator[tuple[str, tuple[Training, float, float]]]:
    """Each training stage: its knobs, its tokens, and its passes over them in units of forward and backward."""
    made = recipe.synthesize
    chats = (made.tool_chats + made.plain_chats + made.question_chats) * CHAT_TOKENS
    pairs = made.preference_problems * recipe.dpo.pairs_per_problem
    yield "pretrain", (recipe.pretrain, recipe.pretrain.steps * recipe.pretrain.batch_tokens, 1.0)
    yield "sft", (recipe.sft, chats * recipe.sft.epochs, 1.0)
    # at most: every problem gives its pairs, and the reference model reads them once, forward only
    yield "dpo", (recipe.dpo, pairs * recipe.dpo.seq_len * recipe.dpo.epochs, 4 / 3)


def memory(config: LlamaConfig, knobs: Training) -> float:
    """Bytes that a processor needs to train: state, activations of a micro-batch, a chunk of logits (fp32, twice)."""
    tokens = knobs.micro_rows * knobs.seq_len
    kv_dim = config.kv_heads * config.head_dim
    # kept for backward in a layer, in bf16: both norms' inputs and outputs, q, k, v, the attention's output, three FFN
    a_token = 2 * (config.layers * (6 * config.dim + 2 * kv_dim + 3 * config.ffn_dim) + 2 * config.dim)
    return STATE_BYTES * count_parameters(config) + tokens * a_token + 2 * 4 * CHUNK * config.vocab_size


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
