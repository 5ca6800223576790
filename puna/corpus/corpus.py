"""The corpus stage: raw pages in, documents out, and every page that was dropped with its reason (section 3.1.1).

    pass 1    read, block, extract, language                    shard by shard (pages.py)
    global    url, exact, near                                  over tables of keys (dedup.py)
    survey    counts of lines and words                         shard by shard, and summed (texts.py)
    pass 2    lines, filter, safety, pii, quality, decontaminate     shard by shard (texts.py)
    output    topic; documents/PART.parquet  held_out.parquet   what was kept (output.py)
              dropped.parquet  funnel.json  source.json         what was not, how many where, and where it came from
              account.html                                      some pages of every reason, to look at (account.py)

Shards are worked on by any number of workers (engine.py). Each pass writes a folder for a shard, named by the digest of
all it depends on: the files, the knobs that the pass may read, and the passes before. So a run that was killed goes on
where it was, and with `corpus.work` a changed knob redoes only the passes that read it.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from puna.artifact import digest_of
from puna.corpus import (
    decontaminate,
    dedup,
    demo,
    language,
    lines,
    outliers,
    output,
    pages,
    quality,
    safety,
    source,
    texts,
)
from puna.corpus.account import write_account
from puna.corpus.engine import Engine, Job, open_engine, run_here, run_jobs
from puna.corpus.source import File
from puna.corpus.tables import connect, quote, scan
from puna.errors import PunaError
from puna.log import Log
from puna.recipe import Corpus, Recipe
from puna.run import OPERATIONAL, figure, only, work_folder

FIRST_PASS = (
    *("max_page_bytes", "text_column", "languages", "language_model", "page_seconds", "worker_memory_gb"),
    *("domain_block_lists", "url_keywords", "minhash_permutations", "minhash_ngram"),
    *("min_language_score", "per_language"),
)
"""The knobs that the first pass sees; all others may change without redoing it."""


def source_digest(recipe: Recipe) -> str:
    """Changes with what the stage reads from outside the run: names, sizes and times of pages; models and lists."""
    knobs = recipe.corpus
    files = demo.demo_digest() if knobs.source == "demo" else source.digest(find_files(knobs))
    return _digest([files, _outside(knobs)])


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Make the corpus artifact in `out`. Raises PunaError for a missing source and for one with nothing to keep."""
    knobs = recipe.corpus
    language.check_languages(knobs.languages, knobs.language_model)
    files, about = _open_source(knobs, out, log)
    work = (Path(knobs.work) if knobs.work else work_folder(out)).absolute()  # Ray's workers may be elsewhere
    passes = Passes(knobs, work, log)
    with open_engine(knobs) as engine:
        shards = passes.judge(engine, pages.make_shards(files, knobs))
    funnel, samples = output.write(out, [shard / "documents.parquet" for shard in shards], knobs)
    if funnel["steps"][-1]["out"] == 0:
        raise PunaError(_nothing_left(knobs, funnel))
    if passes.evaluation:
        output.write_json(out / "contamination.json", report_contamination(passes.evaluation, shards, knobs))
    log.message("writing the account")
    write_account(out / "account.html", samples, funnel, files, knobs)
    output.write_json(out / "source.json", about | {"files": len(files)})
    _tell_of_poison(funnel, log)
    return _metrics(funnel)


def find_files(knobs: Corpus) -> list[File]:
    """All files of the source, or of each of its sources by name."""
    named = {"": knobs.source} if isinstance(knobs.source, str) else knobs.source
    files = [file for name, place in sorted(named.items()) for file in source.find_files(place, knobs.crawl_url, name)]
    return pages.choose(files, knobs.max_files) if knobs.max_files else files


def _open_source(knobs: Corpus, out: Path, log: Log) -> tuple[list[File], dict[str, Any]]:
    """The files to read, and what to tell of them."""
    if knobs.source != "demo":
        return find_files(knobs), {"source": knobs.source, "kind": "files"}
    fetched = demo.fetch(demo.cache_folder(), log)
    licences = fetched.folder.parent / "licences"
    if licences.is_dir():
        shutil.copytree(licences, out / "licences", copy_function=shutil.copyfile, dirs_exist_ok=True)
    files = source.find_files(str(fetched.folder))
    return files, {"source": "demo", "kind": fetched.kind, "packages": fetched.packages}


# -- the passes --------------------------------------------------------------------------------------------------------


class Passes:
    """All that happens to the shards, one pass after the other."""

    def __init__(self, knobs: Corpus, work: Path, log: Log) -> None:
        self.knobs, self.work, self.log = knobs, work, log
        self.outside = _outside(knobs)
        self.evaluation: Path | None = None

    def judge(self, engine: Engine, shards: Sequence[pages.PageShard]) -> list[Path]:
        """The folders of the shards after all passes, in order."""
        first = [self._first(shard) for shard in shards]
        run_jobs(engine, first, self.log, "reading pages")
        duplicates = self._global("duplicates", [job.target for job in first], self._find_duplicates)
        counts = self._count_left([job.target for job in first], duplicates)
        surveys = [self._survey(job, duplicates, counts) for job in first]
        run_jobs(engine, surveys, self.log, "counting lines and words")
        frequent = self._global("frequent", [job.target for job in surveys], self._find_frequent)
        if self.knobs.evaluation_sets:
            self.evaluation = self._global("evaluation", [], self._index_evaluation)
        second = [self._second(job, frequent) for job in surveys]
        run_jobs(engine, second, self.log, "judging texts")
        return [job.target for job in second]

    def _first(self, shard: pages.PageShard) -> Job:
        names = [name for name in FIRST_PASS if name in type(self.knobs).model_fields]
        causes = [source.digest(shard.files), shard.limit, self.outside["first"], _knobs(self.knobs, names)]
        spec = pages.PageShard(shard.number, shard.files, shard.limit, only(self.knobs, names))
        return Job(pages.make_pages, pages.count_pages, spec, self._target("pages", shard.number, causes))

    def _survey(self, first: Job, duplicates: Path, counts: dict[int, dict[str, int]]) -> Job:
        number = first.spec.number
        before = counts[number]
        found = first.target / "pages.parquet", duplicates / "duplicates.parquet"
        spec = texts.TextShard(number, *found, self.knobs, before)
        causes = [first.target.name, duplicates.name, before, self.knobs.line_bucket, self.knobs.line_repeats]
        return Job(texts.make_survey, texts.count_texts, spec, self._target("survey", number, causes))

    def _second(self, survey: Job, frequent: Path) -> Job:
        spec = replace(survey.spec, survey=survey.target, frequent=frequent, evaluation=self.evaluation)
        causes = [survey.target.name, frequent.name, self.outside, _knobs(self.knobs)]
        return Job(texts.make_texts, texts.count_texts, spec, self._target("texts", spec.number, causes))

    def _target(self, stage: str, number: int, causes: Any) -> Path:
        return self.work / stage / f"{number:06d}-{_digest([stage, number, causes, version('puna')])}"

    # -- over all shards -----------------------------------------------------------------------------------------------

    def _global(self, stage: str, shards: list[Path], make: Callable[[list[Path], Path], None]) -> Path:
        """A folder made of all shards' folders, if it is not there."""
        causes = [[shard.name for shard in shards], self.outside, _knobs(self.knobs)]
        target = self.work / "global" / f"{stage}-{_digest([stage, causes, version('puna')])}"
        return run_here(lambda folder: make(shards, folder), target)

    def _find_duplicates(self, shards: list[Path], folder: Path) -> None:
        self.log.message("looking for duplicates")
        all_pages = [shard / "pages.parquet" for shard in shards]
        keys = [shard / "keys.parquet" for shard in shards]
        found = dedup.find_duplicates(keys, texts.Texts(all_pages), self.knobs, folder / "found")
        with connect(self.knobs, folder) as db:  # with the address of the page that is repeated
            query = (
                f"SELECT d.doc, d.step, d.reason, p.url AS detail FROM {scan(found)} d "
                f"JOIN {scan(all_pages)} p ON p.doc = d.other ORDER BY d.doc"
            )
            db.execute(f"COPY ({query}) TO {quote(folder / 'duplicates.parquet')} (FORMAT parquet)")
        shutil.rmtree(folder / "found")

    def _count_left(self, shards: list[Path], duplicates: Path) -> dict[int, dict[str, int]]:
        """For each shard, the pages by language in the shards before it that repeat no other."""
        with connect(self.knobs, self.work) as db:
            keys, dropped = scan(shard / "keys.parquet" for shard in shards), scan(duplicates / "duplicates.parquet")
            rows = db.execute(
                f"SELECT doc >> 32 AS shard, language, count(*) FROM {keys} k ANTI JOIN {dropped} d USING (doc) "
                "GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        left: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for shard, code, count in rows:
            left[shard][code] = count
        before: dict[int, dict[str, int]] = {}
        total: Counter[str] = Counter()
        for number in range(len(shards)):
            before[number] = dict(sorted(total.items()))
            total.update(left[number])
        return before

    def _find_frequent(self, shards: list[Path], folder: Path) -> None:
        found = lines.frequent_lines([shard / "lines.parquet" for shard in shards], self.knobs, folder)
        found.rename(folder / "lines.parquet")
        tokens = outliers.merge_counts(pq.read_table(shard / "tokens.parquet") for shard in shards)
        pq.write_table(tokens, folder / "tokens.parquet")

    def _index_evaluation(self, shards: list[Path], folder: Path) -> None:
        decontaminate.build_index(self.knobs, folder)


def _outside(knobs: Corpus) -> dict[str, Any]:
    """What the passes read that is neither a page nor a knob: models and lists, by their content."""
    first = [language.model_digest(knobs.language_model), safety.outside_digest(knobs)]
    return {"first": first, "second": quality.outside_digest(knobs)}


def _knobs(knobs: Corpus, names: Sequence[str] = ()) -> dict[str, Any]:
    """The values that may change a result, not those that only say how it is come by."""
    return knobs.model_dump(mode="json", include=set(names) or None, exclude=set(OPERATIONAL))


def _digest(causes: Any) -> str:
    return digest_of(causes)[:16]


def report_contamination(index: Path, shards: Sequence[Path], knobs: Corpus) -> dict[str, Any]:
    """For each evaluation set, the share of its examples in the corpus, before and after."""

    def seen(name: str) -> Iterator[np.ndarray]:
        for shard in shards:
            with np.load(shard / "seen.npz") as found:
                yield found[name]

    return decontaminate.report(decontaminate.load_index(index), seen("before"), seen("after"), knobs)


# -- what to tell ------------------------------------------------------------------------------------------------------


def _tell_of_poison(funnel: dict[str, Any], log: Log) -> None:
    if count := sum(step["dropped"].get("poison-page", 0) for step in funnel["steps"]):
        log.message(f"{count:,} pages broke the parser or killed their worker; they are in dropped.parquet")


def _nothing_left(knobs: Corpus, funnel: dict[str, Any]) -> str:
    reasons = {reason: count for step in funnel["steps"] for reason, count in step["dropped"].items()}
    commonest = sorted(reasons.items(), key=lambda item: -item[1])[:5]
    listed = ", ".join(f"{count} {reason}" for reason, count in commonest) or "the files hold no page"
    return (
        f"corpus.source = {knobs.source!r}: none of {funnel['steps'][0]['in']} pages was kept ({listed}); bring more "
        "pages, or loosen the knobs of [corpus] that these reasons name"
    )


def _metrics(funnel: dict[str, Any]) -> dict[str, Any]:
    metrics = {"corpus.pages": figure(funnel["steps"][0]["in"], "pages")}
    for step in funnel["steps"]:
        metrics[f"corpus.dropped.{step['step']}"] = figure(step["in"] - step["out"], "pages")
    for part, counts in funnel["parts"].items():
        metrics[f"corpus.documents.{part}"] = figure(counts["documents"], "documents")
        metrics[f"corpus.characters.{part}"] = figure(counts["characters"], "characters")
    held_out = sum(counts["held_out_documents"] for counts in funnel["parts"].values())
    return metrics | {"corpus.documents.held_out": figure(held_out, "documents")}
