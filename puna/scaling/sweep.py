"""The scaling stage: IsoFLOP runs, and the laws fitted to them (section 3.2.1).

At each budget of compute it trains models of several sizes, each for the tokens that the budget pays, with the
trainer, loader and tokenizer of the real run, and takes their loss on the same held-out tokens. A run is a unit:

    runs/NAME/sweep/RUN/step-*.safetensors  its checkpoints while it trains
                        result.json         what came of it

RUN holds a digest of all that the result depends on, so a new budget in the recipe adds runs and repeats none. Runs
are made side by side here, or one by one as jobs of any scheduler (`puna scaling sweep run`); the stage makes those
that are missing and fits the law.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from puna.errors import PunaError
from puna.log import Log
from puna.machine import physical_cores
from puna.model.llama import Llama
from puna.recipe import Recipe
from puna.run import read_manifest, write_text
from puna.scaling.ladder import SweepRun, plan_runs
from puna.text.tokenizer import Tokenizer
from puna.train.batches import Shards
from puna.train.held_out import held_out_loss
from puna.train.launch import World, end_with, launch
from puna.train.loop import train, use_compile
from puna.train.losses import NextToken


def sweep_runs(recipe: Recipe, inputs: dict[str, Path]) -> list[SweepRun]:
    """The runs of a recipe whose shards and tokenizer are made; PunaError where one of them is not."""
    manifests = {name: read_manifest(folder) for name, folder in inputs.items()}
    if missing := [name for name, manifest in manifests.items() if manifest is None]:
        raise PunaError(f"a sweep needs {', '.join(missing)}, not made yet; `puna run RECIPE {' '.join(missing)}`")
    source = {name: manifest["digest"] for name, manifest in manifests.items() if manifest}
    vocab_size = Tokenizer.load(inputs["tokenizer"]).vocab_size
    return plan_runs(recipe, vocab_size, source)


def run_sweep(runs: Sequence[SweepRun], inputs: dict[str, Path], folder: Path, workers: int | str, log: Log) -> None:
    """Make the runs that have no result yet, side by side, the longest first."""
    waiting = [run for run in runs if read_result(run, folder) is None]
    waiting.sort(key=lambda run: (-run.budget, -run.tokens))
    if len(waiting) < len(runs):
        log.message(f"{len(runs) - len(waiting)} of {len(runs)} runs are there already")
    if not waiting:
        return
    most = (torch.cuda.device_count() or physical_cores()) if workers == "auto" else int(workers)
    context = get_context("spawn")
    places = context.SimpleQueue()
    for place in range(most):
        places.put(place)
    with (
        log.progress("training models", len(waiting)) as bar,
        ProcessPoolExecutor(min(most, len(waiting)), context, _settle, (places, os.getpid())) as pool,
    ):
        futures = {pool.submit(make_run, run, inputs, folder, log.folder, True): run for run in waiting}
        try:
            for future in as_completed(futures):
                result = future.result()
                bar.advance(1, futures[future].name)
                if result["failed"]:
                    log.message(f"{futures[future].name} failed: {result['failed']}")
        except BrokenProcessPool:
            raise PunaError(
                "a process of the sweep was killed, for want of memory perhaps; lower scaling.workers or "
                "scaling.micro_tokens, and run again: finished runs are kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_run(run: SweepRun, inputs: dict[str, Path], folder: Path, logs: Path, quiet: bool = False) -> dict[str, Any]:
    """The result of a run: read, or trained for, going on from its last checkpoint. A run whose loss is not finite
    has a result too, which says so: the other runs are worth having without it."""
    work = folder / run.name
    work.mkdir(parents=True, exist_ok=True)
    with _held(work, run):
        if (result := read_result(run, folder)) is None:
            launch(_train_and_score, 1, run, inputs, work, Log(logs / "scaling", run.name, quiet))
            result = json.loads((work / "result.json").read_text())
        for path in (*work.glob("step-*"), work / "begun"):
            path.unlink(missing_ok=True)
    return result


def read_result(run: SweepRun, folder: Path) -> dict[str, Any] | None:
    """What came of a run: `describe()` with its loss, bits per byte, and why it failed or None; None while it is not
    finished."""
    path = folder / run.name / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _train_and_score(world: World, run: SweepRun, inputs: dict[str, Path], work: Path, log: Log) -> None:
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    model = Llama(run.config).init_weights(torch.Generator().manual_seed(run.seed))
    options = run.options
    shards = inputs["shards"]
    try:
        batches = Shards(shards, run.blends, options.seq_len, run.max_epochs, tokenizer.bos_id, run.seed)
    except PunaError as error:
        raise PunaError(f"{run.name}: {error} (in a sweep: scaling.budgets and scaling.max_epochs)") from None
    loss = NextToken(use_compile(options, world.device))
    try:
        train(model, batches, loss, options, world, work, log, run.name)
    except PunaError as error:  # its loss is not finite
        result = {"failed": str(error), "loss": None, "bits_per_byte": None}
    else:
        scores = held_out_loss(model, tokenizer, shards, run.held_out_tokens, world.device, options)
        result = {"failed": None, **scores}
    write_text(work / "result.json", json.dumps(run.describe() | result, indent=1) + "\n")


# -- processes ---------------------------------------------------------------------------------------------------------


def _settle(places: Any, parent: int) -> None:
    """Give a worker a GPU of its own where there are any, and let it die with its parent."""
    place = places.get()
    if torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


@contextmanager
def _held(work: Path, run: SweepRun) -> Iterator[None]:
    """Hold a run's folder; PunaError when another process holds it. The kernel frees it on any death."""
    with (work / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PunaError(f"{run.name} is being made by another process; wait for it or stop it") from None
        yield
