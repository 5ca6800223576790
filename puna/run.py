"""Runs a recipe: stages in order, each a function from artifacts to an artifact.

An artifact is a directory that is written aside, given a manifest and renamed when it is whole. The manifest holds
the knobs that made it, its inputs by digest, the versions and the digest of every file, so running again skips what
is there, and a changed knob re-runs its stage and whatever depended on the bytes that changed.

    runs/NAME/recipe.toml, STAGE/...            the artifacts
              .partial/STAGE-FINGERPRINT/out    an artifact in the making
                                        /work   checkpoints: what survives a restart and is not part of the artifact
              log/STAGE.jsonl, log/stages.jsonl  what differs between two equal runs: times, speeds
"""

import fcntl
import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal

from puna.artifact import digest_of, figure, read_manifest, work_folder, write_manifest, write_text
from puna.errors import PunaError
from puna.log import Log
from puna.memory import PeakMemory
from puna.model.licence import carry_licences
from puna.recipe import Recipe, load_recipe
from puna.recipe.toml import to_toml
from puna.train.clock import read_clock

Metrics = dict[str, Any]
State = Literal["done", "running", "interrupted", "stale", "missing", "optional"]


@dataclass(frozen=True)
class Stage:
    """One step of the recipe: the function that makes its artifact, and all that the result depends on."""

    name: str
    function: str
    """module:function, called as function(recipe, inputs, out, log) -> metrics; imported when it is run."""
    needs: tuple[str, ...]
    """The stages whose artifacts it reads; of one that has to be asked for, only where it is."""
    knobs: tuple[str, ...]
    """The parts of the recipe it reads."""
    source: str | None = None
    """module:function(recipe) -> digest of what it reads from outside the run."""
    optional: bool = False
    """Made only when it is named; nothing else needs it."""
    asked: str | None = None
    """The knob that asks for it: while that is empty it is optional."""
    replaces: str | None = None
    """Where it is asked for, the stages that need this one get its artifact instead."""
    spared: Callable[[Recipe], Sequence[str]] = lambda recipe: ()
    """Those of its needs that it does without by this recipe."""


def own_chats_alone(recipe: Recipe) -> Sequence[str]:
    return ("synthesize",) if recipe.chats.only else ()


STAGES = (
    Stage("corpus", "puna.corpus.corpus:run", (), ("corpus",), "puna.corpus.corpus:source_digest"),
    Stage(
        "tokenizer",
        "puna.corpus.vocabulary:run",
        ("corpus",),
        ("tokenizer", "model.start", "pretrain.mix", "seed"),
        "puna.model.start:source_digest",
        spared=lambda recipe: ("corpus",) if recipe.model.start or recipe.tokenizer.path else (),
    ),
    Stage("shards", "puna.corpus.shard:run", ("corpus", "tokenizer"), ("seed",)),
    Stage(
        "scaling",
        "puna.scaling.stage:run",
        ("shards", "tokenizer"),
        ("scaling", "pretrain.mix", "pretrain.weights", "seed"),
        optional=True,
    ),
    Stage(
        "pretrain",
        "puna.pretrain.pretrain:run",
        ("shards", "tokenizer"),
        ("model", "pretrain", "seed"),
        "puna.model.start:source_digest",
        spared=lambda recipe: () if recipe.pretrain.tokens else ("shards",),
    ),
    Stage(
        "extend",
        "puna.pretrain.extend:run",
        ("pretrain", "shards", "tokenizer"),
        ("extend", "pretrain", "seed"),
        asked="extend.lengths",
        replaces="pretrain",
    ),
    Stage(
        "synthesize",
        "puna.posttrain.synthesize:run",
        ("corpus", "tokenizer"),
        ("synthesize", "seed"),
        "puna.posttrain.synthesis.stage:source_digest",
    ),
    Stage(
        "chats",
        "puna.posttrain.data.stage:run",
        (),
        ("chats", "seed"),
        "puna.posttrain.data.read:source_digest",
        asked="chats.sources",
    ),
    Stage(
        "sft", "puna.posttrain.sft:run", ("pretrain", "synthesize", "chats"), ("sft", "seed"), spared=own_chats_alone
    ),
    Stage("dpo", "puna.posttrain.dpo:run", ("sft", "synthesize", "chats"), ("dpo", "seed"), spared=own_chats_alone),
    Stage(
        "rounds",
        "puna.posttrain.rounds:run",
        ("pretrain", "synthesize", "chats"),
        ("posttrain", "reward", "sft", "dpo", "seed"),
        asked="posttrain.rounds",
    ),
    Stage(
        "evals",
        "puna.evals.evals:run",
        ("corpus", "shards", "pretrain", "synthesize", "sft", "dpo", "rounds"),
        ("evals", "seed", "pretrain.mix", "pretrain.seq_len"),
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}


OPERATIONAL = (
    *("checkpoint_seconds", "keep_checkpoints", "keep_every", "hang_seconds", "layout"),
    *("straggler", "profile_steps"),
    *("workers", "attempts"),
    *("engine", "ray_address", "memory_gb", "work"),
)
"""Knobs that cannot change a result: they are no reason to make anything again."""


class Run:
    """A recipe and the folder that holds what was made from it."""

    def __init__(self, recipe: Recipe, folder: Path | None = None) -> None:
        self.recipe = recipe
        self.folder = folder or Path("runs") / recipe.name

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """The run that lives in a folder; PunaError when there is none."""
        folder = Path(folder)
        if not (folder / "recipe.toml").is_file():
            raise PunaError(f"{folder} is no run: it has no recipe.toml; `puna run RECIPE` makes one")
        return cls(load_recipe(folder / "recipe.toml"), folder)

    # -- what is there ---------------------------------------------------------------------------------------------

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a whole artifact, None where there is none or a file of it is gone or cut short."""
        return read_manifest(self.folder / stage)

    def fingerprint(self, stage: Stage) -> str | None:
        """Digest of all that determines the artifact; None while an input is missing."""
        inputs = self._input_digests(stage)
        return None if inputs is None else digest_of(self._causes(stage, inputs))

    def state(self, stage: Stage) -> State:
        """Done, running, interrupted (its checkpoints are kept), stale (its causes changed) or missing; a missing
        stage that is made only when it is named is optional."""
        manifest, fingerprint = self.manifest(stage.name), self.fingerprint(stage)
        if manifest and manifest["fingerprint"] == fingerprint:
            return "done"
        if fingerprint and self._partial(stage, fingerprint).exists():
            return "running" if self.locked() else "interrupted"
        return "stale" if manifest else "optional" if self.optional(stage) else "missing"

    def optional(self, stage: Stage) -> bool:
        """Whether the stage is made only when it is named."""
        return stage.optional or (stage.asked is not None and not _knob_at(self.recipe, stage.asked))

    def needs(self, stage: Stage) -> dict[str, str]:
        """The stage that makes each input: the one of its name, or what this recipe replaces it by. One that the
        recipe does not ask for, or makes superfluous, is no input."""
        spared = stage.spared(self.recipe)
        found = {name: name for name in stage.needs if name not in spared and not self.optional(BY_NAME[name])}
        for other in STAGES:
            if other.replaces in found and other is not stage and not self.optional(other):
                found[other.replaces] = other.name
        return found

    def states(self) -> dict[str, State]:
        """The state of every stage; one whose inputs will be made anew is stale, whatever it is by itself."""
        states: dict[str, State] = {}
        for stage in STAGES:
            state = self.state(stage)
            if state == "done" and any(states[name] != "done" for name in self.needs(stage).values()):
                state = "stale"
            states[stage.name] = state
        return states

    def locked(self) -> bool:
        """Whether a process is at work in this folder."""
        try:
            with self.lock():
                return False
        except PunaError:
            return True

    # -- making it -------------------------------------------------------------------------------------------------

    def run(self, names: list[str] | None = None, on_stage: Callable[[Stage, bool], None] | None = None) -> None:
        """Make the named stages (by default all but the optional ones) and whatever they need, missing or stale."""
        wanted = self._with_needs(names or [stage.name for stage in STAGES if not self.optional(stage)])
        with self.lock():
            self._write_recipe()
            for stage in STAGES:
                if stage.name in wanted:
                    fresh = self.state(stage) == "done"
                    if on_stage:
                        on_stage(stage, fresh)
                    if not fresh:
                        self._make(stage)
                    self.write_summary()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's folder; PunaError when another process holds it. The kernel frees it on any death."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PunaError(f"{self.folder} is in use by another puna run; wait for it or stop it") from None
            yield

    def _make(self, stage: Stage) -> None:
        inputs = self._input_digests(stage)
        if inputs is None:
            missing = [name for name in self.needs(stage).values() if self.manifest(name) is None]
            raise PunaError(f"stage {stage.name} needs {', '.join(missing)}, which is not made yet")
        causes = self._causes(stage, inputs)
        partial = self._partial(stage, digest_of(causes))
        for other in self._partials(stage):
            if other != partial:
                shutil.rmtree(other)  # checkpoints of other knobs
        out = partial / "out"
        if read_manifest(out) is None:  # else it was whole already, and only the renaming is owed
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            work_folder(out).mkdir(exist_ok=True)
            with self._timed(stage):
                folders = {name: self.folder / made for name, made in self.needs(stage).items()}
                recipe = only(self.recipe, stage.knobs)
                log = Log(self.folder / "log", stage.name, wandb=self.recipe.wandb)
                metrics = load(stage.function)(recipe, folders, out, log)
            carry_licences(folders.values(), out)
            write_manifest(out, {"stage": stage.name, "fingerprint": digest_of(causes), **causes, "metrics": metrics})
        final = self.folder / stage.name
        old = partial / "old"
        shutil.rmtree(old, ignore_errors=True)  # left by a kill between the renaming and the end
        if final.exists():
            final.rename(old)
        out.rename(final)
        shutil.rmtree(partial)

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        from puna.machine import describe_machine  # here, for it imports torch, which `puna status` can do without

        start = time.time()
        peak = PeakMemory()
        whole = False
        try:
            yield
            whole = True
        finally:
            line = {
                "stage": stage.name,
                "whole": whole,
                "started": start,
                "seconds": time.time() - start,
                "peak_gb": peak.stop() / 1e9,
                "machine": describe_machine(),
            }
            with (self.folder / "log" / "stages.jsonl").open("a") as handle:
                handle.write(json.dumps(line) + "\n")

    # -- figures ---------------------------------------------------------------------------------------------------

    def metrics(self) -> Metrics:
        """Every stage's figures by dotted name, with the minutes by stage, the share of a training's time that went to
        steps that count, and the peak memory."""
        metrics: Metrics = {}
        minutes: dict[str, float] = {}
        peak = 0.0
        for stage in STAGES:
            if manifest := self.manifest(stage.name):
                metrics |= manifest["metrics"]
            if seconds := read_clock(self.folder / "log", stage.name):
                effective = seconds["useful"] / (sum(seconds.values()) or 1.0)
                metrics[f"{stage.name}.effective_time"] = figure(round(effective, 4), "share")
        for line in self.timings():
            if line["stage"] in BY_NAME:
                minutes[line["stage"]] = line["minutes"]
                peak = max(peak, line["peak_gb"])
        metrics |= {f"minutes.{name}": figure(round(value, 3), "min") for name, value in minutes.items()}
        metrics["minutes.total"] = figure(round(sum(minutes.values()), 3), "min")
        metrics["memory.peak_gb"] = figure(round(peak, 3), "GB")
        return metrics

    def timings(self) -> list[dict[str, Any]]:
        """For each stage its last making: minutes over all its restarts, peak memory of all its processes, machine."""
        path = self.folder / "log" / "stages.jsonl"
        latest: dict[str, dict[str, Any]] = {}
        for text in path.read_text().splitlines() if path.exists() else []:
            line = json.loads(text)
            before = latest.get(line["stage"])
            if before is None or before["whole"]:
                before = {"minutes": 0.0, "peak_gb": 0.0}
            latest[line["stage"]] = {
                "stage": line["stage"],
                "whole": line["whole"],
                "machine": line["machine"],
                "minutes": before["minutes"] + line["seconds"] / 60,
                "peak_gb": max(before["peak_gb"], line["peak_gb"]),
            }
        return list(latest.values())

    def write_summary(self) -> None:
        write_text(self.folder / "summary.json", json.dumps(self.metrics(), indent=1, sort_keys=True) + "\n")

    # -- inside ----------------------------------------------------------------------------------------------------

    @cached_property
    def _knobs(self) -> dict[str, Any]:
        """What can change a result, by section: how often a checkpoint is written, say, cannot."""
        knobs = self.recipe.model_dump(mode="json")
        for section in knobs.values():
            for name in OPERATIONAL if isinstance(section, dict) else ():
                section.pop(name, None)
        return knobs

    def _causes(self, stage: Stage, inputs: dict[str, str]) -> dict[str, Any]:
        knobs = {key: reduce(lambda table, part: table[part], key.split("."), self._knobs) for key in stage.knobs}
        source = load(stage.source)(only(self.recipe, stage.knobs)) if stage.source else None
        return {"knobs": knobs, "inputs": inputs, "source": source}

    def _input_digests(self, stage: Stage) -> dict[str, str] | None:
        manifests = {name: self.manifest(made) for name, made in self.needs(stage).items()}
        if any(manifest is None for manifest in manifests.values()):
            return None
        return {name: manifest["digest"] for name, manifest in manifests.items() if manifest}

    def _partial(self, stage: Stage, fingerprint: str) -> Path:
        return self.folder / ".partial" / f"{stage.name}-{fingerprint[:12]}"

    def _partials(self, stage: Stage) -> list[Path]:
        return list((self.folder / ".partial").glob(f"{stage.name}-*"))

    def _with_needs(self, names: list[str]) -> set[str]:
        wanted: set[str] = set()
        for name in names:
            if name not in BY_NAME:
                raise PunaError(f"there is no stage {name!r}; the stages are {', '.join(BY_NAME)}")
            wanted |= {name} | self._with_needs(list(self.needs(BY_NAME[name]).values()))
        return wanted

    def _write_recipe(self) -> None:
        write_text(self.folder / "recipe.toml", to_toml(self.recipe.model_dump(mode="json", exclude_none=True)))


def only(recipe: Any, knobs: Sequence[str]) -> Any:
    """The recipe with the named knobs and no others: a stage that reads one it did not declare fails at once."""
    sections: dict[str, list[str]] = {}
    for key in knobs:
        section, _, rest = key.partition(".")
        sections.setdefault(section, []).append(rest)
    part = recipe.model_construct()
    part.__dict__.clear()
    for section, rest in sections.items():
        value = getattr(recipe, section)
        part.__dict__[section] = value if "" in rest else only(value, rest)
    return part


def _knob_at(recipe: Recipe, name: str) -> Any:
    return reduce(getattr, name.split("."), recipe)


def load(function: str) -> Callable[..., Any]:
    """The function that `module:name` names. Stages are imported this way, so that nothing else depends on them."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)
