"""A plan as text for the terminal."""

from collections.abc import Iterator

from rich.table import Table

from puna.model.llama import LlamaConfig, count_parameters
from puna.plan.machines import GIB, LINK_EFFICIENCY, Machine
from puna.plan.reliability import FAILURES_PER_GPU_DAY
from puna.plan.serve import Serving
from puna.plan.speed import bandwidth, step_volume
from puna.plan.training import Plan, StagePlan, published_hours

SHARDED = {
    0: "nothing sharded",
    1: "FSDP: optimizer sharded",
    2: "FSDP: optimizer and gradients sharded",
    3: "FSDP: optimizer, gradients and weights sharded",
}


def plan_lines(plan: Plan) -> Iterator[str | Table]:
    """Model, machine, stages, the pretraining layout in detail, then hours, failures and money."""
    yield from model_lines(plan.recipe.name, plan.recipe.model.name, plan.config)
    yield from machine_lines(plan.machine)
    yield ""
    yield stage_table(plan)
    yield "[dim]6ND without attention, FLOPs with its full square; memory of one processor; time without failures;[/]"
    yield "[dim]corpus, sampling and evaluation are not planned: they depend on the source[/]"
    yield ""
    main = plan.stages[0]
    yield from layout_lines(main)
    if main.choice.fits:
        yield ""
        yield from total_lines(plan)
    yield from published_lines(plan)


def model_lines(name: str, preset: str, c: LlamaConfig) -> Iterator[str]:
    yield f"[bold]{name}[/]: {preset}, {count_parameters(c):,} parameters"
    yield (
        f"  {c.layers} layers, dim {c.dim:,}, FFN {c.ffn_dim:,}, {c.heads} heads, {c.kv_heads} KV heads, "
        f"vocabulary {c.vocab_size:,}"
    )


def machine_lines(machine: Machine) -> Iterator[str]:
    p = machine.processor
    yield f"on [bold]{machine.name}[/]: {p.bf16 / 1e12:,.4g} TFLOP/s bf16 and {size(p.memory)} each"
    share = f"{p.mfu:.0%} MFU" if p.mfu is not None else f"products at {p.matmul:.0%} of the peak"
    yield f"  {share}: {p.source}"


def stage_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage")
    for name in ("tokens", "6ND", "FLOPs", "memory", "processors", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in plan.stages:
        need = size(s.choice.need)
        fits = s.choice.fits
        table.add_row(
            s.name,
            quantity(s.tokens),
            f"{s.flops_6nd:.3g}",
            f"{s.flops:.3g}",
            need if fits else f"[red]{need}[/]",
            f"{s.choice.machine.count:,}",
            duration(s.seconds) if fits else "[red]does not fit[/]",
        )
    return table


def layout_lines(stage: StagePlan) -> Iterator[str]:
    """The layout of one stage: batch, bubble, memory by what holds it, communication by axis, speed, what binds."""
    choice, job = stage.choice, stage.job
    layout, step, p = choice.layout, choice.step, choice.machine.processor
    m = layout.micro_batches(job)
    yield f"[bold]{stage.name}: {layout}[/], {SHARDED[layout.shard]}, activations recomputed: {layout.recompute}"
    yield (
        f"  batch      {job.batch_rows:,} rows of {job.seq_len:,} = {quantity(job.batch_tokens)} tokens; "
        f"{job.batch_rows // layout.dp:,} rows for each DP rank in {m:,} micro-batches"
    )
    if layout.pp > 1:
        schedule = f"interleaved, {layout.stages} stages a rank" if layout.stages > 1 else "1F1B"
        yield (
            f"  pipeline   {schedule}: bubble {layout.bubble(job):.1%} of the busy time (PP - 1) / (V M)"
            + (f", 1F1B would have {(layout.pp - 1) / m:.1%}" if layout.stages > 1 else "")
        )
    memory = choice.memory
    parts = ("weights", "gradients", "optimizer", "activations", "gathered", "working")
    sizes = [(part, getattr(memory, part)) for part in parts] + [("allocator and driver", choice.need - memory.total)]
    unit, name = (GIB, "GiB") if memory.total > GIB else (2**20, "MiB")
    shown = ", ".join(f"{part} {held / unit:,.1f}" for part, held in sizes if held >= 0.001 * memory.total)
    tight = "fits" if choice.fits_well else "[yellow]fits, with little to spare[/]"
    verdict = tight if choice.fits else "[red]does not fit[/]"
    yield f"  memory     {size(choice.need)} of {size(p.memory)}, {verdict}; +-15%, as torchtitan's readings lie"
    yield f"             in {name}: {shown}"
    if not choice.fits:
        yield from (f"  binds      {line}" for line in stage.binds)
        return
    yield from communication_lines(stage)
    if p.mfu is None:
        rates = [stage.rate(f) / 1e12 for f in (stage.flops_6nd, stage.flops_causal, stage.flops)]
        tokens = stage.tokens / stage.seconds / choice.machine.count
        yield (
            f"  speed      {tokens:,.0f} tokens/s a GPU; {rates[1]:,.0f} TFLOP/s with causal attention "
            f"({rates[0]:,.0f} as 6ND, {rates[2]:,.0f} with the full square: {rates[2] * 1e12 / p.bf16:.0%} MFU)"
        )
    yield from (f"  binds      {line}" for line in stage.binds)
    for i, other in enumerate(stage.others[:4]):
        slower = f"{step.seconds / other.step.seconds - 1:+.0%} speed, {size(other.need)}"
        yield f"  {'also fit' if i == 0 else '':<10} {other.layout}: {slower}, recompute {other.layout.recompute}"


def communication_lines(stage: StagePlan) -> Iterator[str]:
    """Bytes, bandwidth and seconds of a step for each axis."""
    layout, step, p = stage.choice.layout, stage.choice.step, stage.choice.machine.processor
    received = step_volume(stage.job, layout)
    if p.mfu is not None:  # measured whole
        return
    for axis in ("tp", "cp", "dp"):
        volume = getattr(received, axis)
        if volume:
            seconds = volume / (bandwidth(p, layout, axis) * LINK_EFFICIENCY)
            exposed = getattr(step, axis)
            yield (
                f"  {axis.upper():<10} {volume / 1e9:,.1f} GB a step at {bandwidth(p, layout, axis) / 1e9:,.0f} GB/s "
                f"x {LINK_EFFICIENCY:g}: {seconds:.2f} s, of which {exposed:.2f} s are not hidden"
            )
    if received.pp:
        yield f"  PP         {received.pp / 1e9:,.1f} GB a step, sent beside the computation"


def total_lines(plan: Plan) -> Iterator[str]:
    s, r = plan.settings, plan.reliability
    hours, spread = plan.gpu_hours, plan.uncertainty
    low, high = (duration(days * 86_400) for days in (plan.days / (1 + spread), plan.days * (1 + spread)))
    parameters = count_parameters(plan.config)
    how = f"{low} at the {s.tflops:g} TFLOP/s (6ND) given" if s.tflops else f"{low} to {high} (+-{spread:.0%})"
    what = "processor" if plan.machine.processor.watts is None else "GPU"
    yield f"[bold]in all[/]     {how}: {quantity(hours)} {what} hours"
    if plan.machine.processor.watts is None:
        return  # one machine at home: neither failures nor prices
    source = "the paper's rate, table 5" if s.failures_per_gpu_day == FAILURES_PER_GPU_DAY else "the rate given"
    rare = f", one every {duration(r.mean_time_between)}" if r.unexpected else ""
    often = f"every {duration(r.interval)} (Daly)" if r.unexpected else "never, without failures"
    yield f"  failures   {r.unexpected:,.1f} unexpected interruptions{rare} ({source}), {r.planned:,.1f} planned"
    yield (
        f"  checkpoint {r.checkpoint_bytes / 1e9:,.1f} GB (weights and moments, fp32) in {duration(r.write)}, "
        f"best {often}; the model in bf16 {2 * parameters / 1e9:,.1f} GB"
    )
    given = " (given)" if s.effective else f" with {s.restart_minutes:g} minutes to restart (ours)"
    yield f"  effective  {plan.effective:.1%} of the time trains{given}"
    if plan.kwh is not None:
        price = f", {s.price_per_kwh * plan.kwh:,.0f} at {s.price_per_kwh:g} a kWh" if s.price_per_kwh else ""
        energy = f"{plan.kwh / 1000:,.1f} MWh" if plan.kwh >= 10_000 else f"{plan.kwh:,.0f} kWh"
        yield (
            f"  energy     {energy}: the GPUs at their design power x PUE {s.pue:g}{price}; "
            "hosts and network come on top"
        )
    if s.price_per_gpu_hour:
        yield f"  price      {s.price_per_gpu_hour * hours:,.0f} at {s.price_per_gpu_hour:g} a GPU hour"


def published_lines(plan: Plan) -> Iterator[str]:
    """Meta's own hours for this model beside the plan's, never bent to it."""
    found = published_hours(plan)
    if not found:
        return
    preset, tokens, hours, implied = found
    yield ""
    yield (
        f"[bold]published[/]  {preset} took {quantity(hours)} H100 hours (model card) for {tokens / 1e12:g}T"
        f"{'+' if preset != '405b' else ''} tokens: {implied:.0f} TFLOP/s (6ND) over all those hours"
    )
    stage = plan.stages[0]
    if abs(stage.tokens / tokens - 1) < 0.01:
        yield f"             this plan's GPU hours are {plan.gpu_hours / hours - 1:+.0%} of that"
        if plan.gpu_hours / hours < 0.85:
            yield "             the paper does not say where the rest went; the plan is not bent to fit"


def serve_lines(name: str, preset: str, config: LlamaConfig, machine: Machine, s: Serving) -> Iterator[str]:
    yield from model_lines(name, preset, config)
    p = machine.processor
    yield f"served in {s.precision} on [bold]{machine.name}[/]: {s.batch:,} sequences of {s.context:,} tokens at once"
    yield f"  weights    {s.weights / 1e9:,.1f} GB"
    yield f"  KV cache   {s.cache / 1e9:,.1f} GB: {s.cache_per_token / 1024:,.0f} KiB a token, bf16"
    verdict = "[green]fits[/]" if s.fits else "[red]does not fit[/]"
    yield (
        f"  memory     {s.each / GIB:,.1f} of {s.usable / GIB:,.1f} GiB (90% of {p.memory / GIB:,.1f}) on each with "
        f"TP{s.tp} PP{s.pp}: {verdict}"
    )
    yield f"  smallest   {s.smallest}"
    if not s.fits:
        return
    yield f"  room       for {s.most_tokens:,.0f} tokens of cache in all"
    yield (
        f"  limits     decode {s.decode_limit_one:,.0f} tokens/s for one sequence, {s.decode_limit:,.0f} "
        f"for {s.batch:,}; prefill {s.prefill_limit:,.0f} tokens/s"
    )
    yield "             upper bounds by memory bandwidth and products: engines reach a part of them"


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.2g} seconds"


def size(held: float) -> str:
    """Bytes, for memory."""
    return f"{held / GIB:,.1f} GiB" if held >= 0.1 * GIB else f"{held / 2**20:,.0f} MiB"


def quantity(number: float) -> str:
    """A count in the units people say: 15.6T, 16.8M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"
