"""The training loop. Pretraining, SFT and DPO differ in their batches and their loss, and in nothing here."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from puna.errors import PunaError
from puna.log import Log
from puna.machine import can_compile, peak_flops, training_dtype
from puna.model.llama import Llama, flops_per_token
from puna.recipe import Training
from puna.train.attention import attention_in, choose_attention
from puna.train.batches import Batch, Batches, rows_of_step
from puna.train.checkpoint import load_checkpoint, save_checkpoint
from puna.train.launch import World
from puna.train.losses import Loss
from puna.train.optimizer import learning_rate, make_optimizer


def train(
    model: Llama,
    batches: Batches,
    loss: Loss,
    options: Training,
    world: World,
    work: Path,
    log: Log,
    name: str,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Train `model` in place on every row of `batches`, from the newest checkpoint in `work` if there is one.

    Each process holds the whole model and takes its share of the rows of a step. The loss of a step is a sum over all
    its rows divided by its counts over all processes, so it does not depend on how the rows are divided. Resuming is
    bit-exact on a CPU. Every process calls `after_step` with the number of steps done, before a checkpoint counts them.
    Raises PunaError when the loss is not finite.
    """
    stretches = options.stretches(len(batches))
    steps = sum(stretch.steps for stretch in stretches)
    if steps == 0:
        raise PunaError(f"{name} has {len(batches)} rows, fewer than one step of batch_rows = {options.batch_rows}")
    model.to(world.device).train()
    gradient, sum_gradient = world.vector(sum(p.numel() for p in trained(model)))
    view_gradients(model, gradient)
    optimizer = make_optimizer(model, options)
    dtype = training_dtype(options, world.device)
    compiled = use_compile(options, world.device)
    hidden = torch.compile(model.hidden, dynamic=False) if compiled else model.hidden
    attend = choose_attention(world.device, dtype, compiled, options.seq_len)
    peak = peak_flops(world.device, dtype) * world.size
    first = load_checkpoint(work, model, optimizer, log)  # last: it restores the state of the random generator
    if world.rank == 0:
        log.keep_until(first)
        if first:
            log.message(f"{name} goes on from step {first:,} of {steps:,}")
    saved = before = time.monotonic()

    with log.progress(name, steps if world.rank == 0 else 0) as bar, attention_in(model, attend):
        if world.rank == 0:
            bar.advance(first)
        for step in range(first, steps):
            numbers, seq_len = rows_of_step(step, stretches)
            micro_batches = [batches.rows(rows) for rows in rows_of(numbers, options, world)]
            micro_batches = [batch.to(world.device) for batch in micro_batches]
            counts = world.sum(torch.stack([loss.counts(batch) for batch in micro_batches]).sum(0))
            total = torch.zeros(1, device=world.device)
            gradient.zero_()
            for batch in micro_batches:
                total += backward(model, hidden, loss, batch, counts, dtype)
            sum_gradient()
            world.sum(total)
            norm = gradient.norm()
            if not math.isfinite(total.item() + norm.item()):
                raise PunaError(
                    f"{name}: loss {total.item()} and gradient norm {norm.item()} at step {step + 1} are not finite; "
                    f"lower peak_lr ({options.peak_lr:g}) or raise warmup_steps ({options.warmup_steps})"
                )
            gradient.mul_(torch.clamp(options.clip_norm / (norm + 1e-6), max=1.0))
            lr = learning_rate(step, steps, options)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            if after_step:
                after_step(step + 1)

            if world.rank == 0:
                now = time.monotonic()
                speed = len(numbers) * seq_len / (now - before)
                before = now
                log.figures(
                    step + 1,
                    loss=total.item(),
                    gradient_norm=norm.item(),
                    learning_rate=lr,
                    tokens_per_second=speed,
                    mfu=flops_per_token(model.config, seq_len) * speed / peak,
                    **({"batch_rows": len(numbers), "seq_len": seq_len} if len(stretches) > 1 else {}),
                )
                bar.advance(1, f"loss {total.item():.3f}  {speed:,.0f} tokens/s")
                if now - saved > options.checkpoint_seconds:
                    save_checkpoint(work, step + 1, model, optimizer, options.keep_checkpoints)
                    saved = before = time.monotonic()
    model.eval()


def backward(
    model: Llama, hidden_fn, loss: Loss, batch: Batch, counts: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """One micro-batch forward and backward: gradients add up in the parameters, its part of the loss is returned."""
    with torch.autocast(batch.tokens.device.type, dtype, enabled=dtype != torch.float32):
        value = loss(hidden_fn(batch.tokens, documents=batch.documents), model.lm_head.weight, batch, counts)
    value.backward()
    return value.detach()


def rows_of(numbers: range, options: Training, world: World) -> list[range]:
    """The row numbers of this process's micro-batches among those of a step."""
    share = len(numbers) // world.size
    first = numbers.start + world.rank * share
    return [range(i, i + options.micro_rows) for i in range(first, first + share, options.micro_rows)]


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def view_gradients(model: torch.nn.Module, flat: torch.Tensor) -> None:
    """Make every gradient a view of one fp32 vector, so that its sum over processes and its norm are one call each."""
    parameters = trained(model)
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = piece.view_as(parameter)


def use_compile(options: Training, device: torch.device) -> bool:
    return options.compile == "on" or (options.compile == "auto" and can_compile(device.type))
