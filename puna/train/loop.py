"""The training loop. Pretraining, SFT and DPO differ in their batches and their loss, and in nothing here."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from puna.errors import PunaError
from puna.log import Log
from puna.machine import can_compile, peak_flops
from puna.model.llama import Llama
from puna.recipe import Training
from puna.recipe.training import Stretch
from puna.train.ahead import ahead
from puna.train.batches import Batch, Batches, rows_of_step
from puna.train.checkpoint import Checkpoints
from puna.train.clock import Clock, clock_file
from puna.train.guard import Guard
from puna.train.launch import Preempted, World
from puna.train.losses import Loss, tally_of
from puna.train.metrics import Meter
from puna.train.optimizer import learning_rate, make_optimizer
from puna.train.profile import Profiler
from puna.train.watch import Watch
from puna.train.whole import Whole


class Trainee(Protocol):
    """A model with its gradients: whole in each process (whole.py), or in parts (puna/parallel/parts.py)."""

    dtype: torch.dtype
    """Of the matrix products."""
    share: tuple[int, int]
    """Which share of a step's rows this process takes, of how many."""
    own: float | None
    """Seconds that this process has worked in all its steps, without its waiting for others; None if not known."""
    module: nn.Module
    """Holds the trained parameters."""

    def training(self) -> AbstractContextManager[None]: ...
    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None: ...
    def sum_counts(self, counts: Tensor) -> Tensor: ...
    def step(self, micro_batches: Sequence[Batch], rows: int, counts: Tensor) -> Tensor: ...
    def norm(self) -> Tensor: ...
    def scale(self, factor: Tensor) -> None: ...
    def checkpoints(
        self, folder: Path, optimizer: torch.optim.Optimizer, memory: Mapping[str, Tensor], options: Training, log: Log
    ) -> Checkpoints: ...
    def finish(self, checkpoints: Checkpoints, steps: int) -> None: ...


def train(
    model: Llama,
    batches: Batches,
    loss: Loss,
    options: Training,
    world: World,
    work: Path,
    log: Log,
    name: str,
    after_step: Callable[[int, nn.Module], None] | None = None,
    weights: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """Train `model` in place on every row of `batches`, from the newest checkpoint in `work` if there is one.

    The loss of a step is a sum over all its rows divided by its counts over all processes, so it does not depend on
    how the rows are divided. Resuming is bit-exact on a CPU and the same layout. Every process calls `after_step` with
    the number of steps done and its part of the model, before a checkpoint counts them. Afterwards the process of
    rank 0 has the whole model.

    A model without memory (on the meta device) gets its first values from `weights`, (name, whole value) one by one, of
    which a process keeps its part: no process ever holds the whole. They are not asked for where there is a checkpoint.

    Raises PunaError when steps go on failing (guard.py), Preempted after a SIGTERM, with a checkpoint written.
    """
    stretches = options.stretches(len(batches))
    steps = sum(stretch.steps for stretch in stretches)
    if steps == 0:
        raise PunaError(f"{name} has {len(batches)} rows, fewer than one step of batch_rows = {options.batch_rows}")
    clock = Clock(clock_file(log.folder, log.stage) if world.rank == 0 else None, work / "begun")
    trainee = make_trainee(model, loss, options, world)
    optimizer = make_optimizer(trainee.module, options)
    guard = Guard(options)
    checkpoints = trainee.checkpoints(work, optimizer, guard.memory, options, log)
    peak = peak_flops(world.device, trainee.dtype) * world.size
    clock.back_to(first := checkpoints.load())  # last: it restores the state of the random generator
    if weights is not None and not first:
        trainee.fill(weights)
    if world.rank == 0:
        log.keep_until(first)
        if first:
            log.message(f"{name} goes on from step {first:,} of {steps:,}")
    meter = Meter(model.config, peak, log, clock)
    watch = Watch(world, options.hang_seconds, options.straggler)
    profiler = Profiler(log, world.rank, options.profile_steps)
    tally = tally_of(loss)

    reader = closing(ahead(read(batches, first, stretches, options.micro_rows, trainee.share)))
    progress = log.progress(name, steps if world.rank == 0 else 0)
    with progress as bar, trainee.training(), watch, reader as steps_read, terminations() as end, closing(profiler):
        if world.rank == 0:
            bar.advance(first)
        for step in range(first, steps):
            numbers, seq_len = rows_of_step(step, stretches)
            profiler.begin(step + 1)
            watch.at(step, "reading rows")
            with meter.reading():
                micro_batches = next(steps_read)
            watch.at(step, "training")
            micro_batches = [batch.to(world.device) for batch in micro_batches]
            counts = trainee.sum_counts(torch.stack([loss.counts(batch) for batch in micro_batches]).sum(0))
            # With the loss go the wishes on which all must act at the same step: to save, to stop, to trace.
            total = torch.zeros(4, device=world.device)
            total[0] = trainee.step(micro_batches, len(numbers), counts)
            total[1] = world.rank == 0 and meter.unsaved() > options.checkpoint_seconds
            total[2] = bool(end)
            total[3] = world.rank == 0 and profiler.asked()
            total = world.sum(torch.cat([total, tally.take(world.device)]))
            norm = trainee.norm()
            value, save, stop, trace, *by_source = total.tolist()
            lr = learning_rate(step, steps, options)
            if taken := guard.allows(value, norm.item()):
                trainee.scale(torch.clamp(options.clip_norm / (norm + 1e-6), max=1.0))
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
            elif guard.exhausted:
                clock.back_to(
                    go_back(step, checkpoints, guard, options, name, f"loss {value} and gradient norm {norm.item()}")
                )
            if after_step:
                after_step(step + 1, trainee.module)

            watch.worked(trainee.own and trainee.own + meter.waited, world.device)
            profiler.end(step + 1, bool(trace))
            clock.spend("starting" if step == first else "useful" if taken else "skipped")

            if world.rank == 0:
                more = tally.means(by_source) | watch.straggler(log)
                if len(stretches) > 1:
                    more |= {"batch_rows": len(numbers), "seq_len": seq_len}
                more |= {"skipped": guard.skipped}
                told = meter.step(step + 1, len(numbers), seq_len, value, norm.item(), lr, **more)
                bar.advance(1, told)
            kept = options.keep_every and (step + 1) % options.keep_every == 0
            if (save and not guard.in_a_row) or kept or stop:
                watch.at(step, "saving")
                checkpoints.save(step + 1)
                meter.saved()
                clock.save(step + 1)
            if stop:
                checkpoints.wait()
                raise Preempted(f"{name} stopped after step {step + 1:,} of {steps:,}, which a checkpoint holds")
    trainee.finish(checkpoints, steps)
    clock.save(steps)
    if world.rank == 0:
        log.message(f"{name}: {clock.effective:.1%} of the time since its start went to steps that count")
    log.close()
    model.eval()


def read(
    batches: Batches, first: int, stretches: Sequence[Stretch], micro_rows: int, share: tuple[int, int]
) -> Iterator[list[Batch]]:
    """This process's micro-batches of every step from `first` on."""
    for step in range(first, sum(stretch.steps for stretch in stretches)):
        numbers, _ = rows_of_step(step, stretches)
        yield [batches.rows(rows) for rows in rows_of(numbers, micro_rows, *share)]


def make_trainee(model: Llama, loss: Loss, options: Training, world: World) -> Trainee:
    compiled = use_compile(options, world.device)
    plain = options.layout.is_plain and not options.float8
    adapted = not all(p.requires_grad for p in model.parameters())
    if adapted and not plain:
        raise PunaError("adapters are trained with the model whole in each process; set no layout and no float8")
    if plain and (adapted or world.device.type == "cpu"):
        return Whole(model, loss, options, world, compiled)
    from puna.parallel.parts import Parts

    # On a CPU only where it is asked for: Inductor's C++ for single layers failed to compile when tried (torch 2.13).
    return Parts(model, loss, options, world, compiled and (world.device.type != "cpu" or options.compile == "on"))


def go_back(step: int, checkpoints: Checkpoints, guard: Guard, options: Training, name: str, found: str) -> int:
    """Take the weights of a checkpoint from before the trouble, and return its step; the rows since then are passed
    over."""
    skipped, rewinds = guard.skipped, guard.rewinds
    begin = step + 1 - guard.in_a_row
    before = begin - options.rewind_steps
    what = "not finite" if "nan" in found or "inf" in found else f"a spike (spike = {options.spike:g})"
    if rewinds >= options.max_rewinds or before < 1 or not (there := checkpoints.load(before)):
        raise PunaError(
            f"{name}: {found} at step {step + 1} are {what}; lower peak_lr ({options.peak_lr:g}) or raise warmup_steps "
            f"({options.warmup_steps})"
        )
    guard.rewound(skipped, rewinds)
    checkpoints.log.message(
        f"{name}: {options.patience} steps in a row failed from step {begin + 1:,} ({found}); the weights are again "
        f"those of step {there:,}, and the rows of the steps between are passed over"
    )
    return there


def rows_of(numbers: range, micro_rows: int, rank: int, size: int) -> list[range]:
    """The row numbers of a process's micro-batches among those of a step: equal shares, or nearly."""
    count = len(numbers) // micro_rows
    if count < size:
        raise PunaError(
            f"{size} processes share {count} micro-batches of a step; use fewer, lower micro_rows ({micro_rows}) or "
            "raise batch_rows"
        )
    mine = range(rank * count // size, (rank + 1) * count // size)
    return [numbers[i * micro_rows : (i + 1) * micro_rows] for i in mine]


@contextmanager
def terminations() -> Iterator[list[int]]:
    """Instead of ending the process, SIGTERM adds to the list while the block runs."""
    found: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python lets only that one ask for signals
        yield found
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
    try:
        yield found
    finally:
        signal.signal(signal.SIGTERM, before)


def use_compile(options: Training, device: torch.device) -> bool:
    return options.compile == "on" or (options.compile == "auto" and can_compile(device.type))
