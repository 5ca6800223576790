"""The corpus stage: raw pages in, documents out, and every page that was dropped with its reason (section 3.1.1).

    read -> extract -> language -> filter      page by page, in a pool of processes (judge.py)
    url -> exact -> near                       over all pages at once (dedup.py)

    documents/PART.parquet  held_out.parquet   what was kept
    dropped.parquet  funnel.json  source.json  what was not, how many at each step, and where it all came from

The paper removes duplicates before it filters. Filtering first keeps the global steps small; what differs is only that
the copy which is kept has passed the filters.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from puna.corpus import dedup, demo
from puna.corpus.judge import Shard, die_with_parent, load_shard, make_shards, process_shard
from puna.corpus.language import check_languages
from puna.corpus.read import PARTS, find_files
from puna.corpus.shingles import hash_words
from puna.errors import PunaError
from puna.log import Log
from puna.recipe import Corpus, Recipe
from puna.run import figure, work_folder

STEPS = ("read", "extract", "language", "filter", "url", "exact", "near")
COLUMNS = ("url", "origin", "date", "part", "title", "language", "language_score", "characters", "text")
EXCERPT = 2000  # characters kept of a dropped text
ROW_GROUP = 1000  # documents


def source_digest(recipe: Recipe) -> str:
    """Changes with the names, sizes and times of the files that the stage reads."""
    if recipe.corpus.source == "demo":
        return demo.demo_digest()
    source = Path(recipe.corpus.source)
    digest = hashlib.sha256()
    for files in find_files(source):
        for path in files:
            stat = path.stat()
            digest.update(f"{path.relative_to(source.parent)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Make the corpus artifact in `out`. Raises PunaError for a missing source and for one with nothing to keep."""
    knobs = recipe.corpus
    check_languages(knobs.languages)
    source, about = _open_source(knobs, out, log)
    work = work_folder(out)
    work.mkdir(parents=True, exist_ok=True)
    shards = make_shards(source, work, knobs)
    _process(shards, knobs.workers, log)
    pages = pa.concat_tables([load_shard(shard) for shard in shards])
    _tell_of_poison(pages, log)
    pages = drop_duplicates(pages, knobs, log)
    kept = pages.filter(_is(pages, "reason", ""))
    if kept.num_rows == 0:
        raise PunaError(_nothing_left(knobs, pages))
    held_out = choose_held_out(kept["url"].to_pylist(), knobs.held_out)
    funnel = count_funnel(pages, kept, held_out)
    _write_documents(out, kept, held_out)
    _write_dropped(out, pages)
    _write_json(out / "funnel.json", funnel)
    _write_json(out / "source.json", about | {"files": sum(len(shard.files) for shard in shards)})
    return _metrics(funnel)


def _open_source(knobs: Corpus, out: Path, log: Log) -> tuple[Path, dict[str, Any]]:
    """The folder to read, and what to tell of it."""
    if knobs.source != "demo":
        return Path(knobs.source), {"source": knobs.source, "kind": "files"}
    fetched = demo.fetch(demo.cache_folder(), log)
    licences = fetched.folder.parent / "licences"
    if licences.is_dir():
        shutil.copytree(licences, out / "licences", copy_function=shutil.copyfile, dirs_exist_ok=True)
    return fetched.folder, {"source": "demo", "kind": fetched.kind, "packages": fetched.packages}


def _process(shards: list[Shard], workers: int, log: Log) -> None:
    """Do the shards that are not done yet: a run that was killed goes on where it was."""
    owed = [shard for shard in shards if not shard.target.exists()]
    with log.progress("reading pages", len(shards)) as bar:
        bar.advance(len(shards) - len(owed))
        if workers == 1 or len(owed) < 2:
            for shard in owed:
                process_shard(shard)
                bar.advance()
            return
        # spawned, not forked: the parent may have threads. Nothing that is imported for a shard loads torch.
        with ProcessPoolExecutor(min(workers, len(owed)), get_context("spawn"), die_with_parent) as pool:
            try:
                for future in as_completed([pool.submit(process_shard, shard) for shard in owed]):
                    future.result()
                    bar.advance()
            except BrokenProcessPool as error:
                raise PunaError(
                    "a worker of the corpus stage died, perhaps for lack of memory; finished shards are kept, so "
                    "run again, with a smaller corpus.workers or corpus.max_page_bytes if it happens again"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def _tell_of_poison(pages: pa.Table, log: Log) -> None:
    poison = pages.filter(_is(pages, "reason", "poison-page"))
    if poison.num_rows:
        log.message(f"{poison.num_rows:,} pages broke the parser; the first: {poison['detail'][0]}")


# -- duplicates --------------------------------------------------------------------------------------------------------


def drop_duplicates(pages: pa.Table, knobs: Corpus, log: Log) -> pa.Table:
    """Mark the pages that repeat another one, whose address becomes their detail."""
    urls, dates, sizes = (pages[name].to_pylist() for name in ("url", "date", "characters"))
    marks = {name: pages[name].to_pylist() for name in ("step", "reason", "detail")}

    def alive() -> list[int]:
        return [page for page, reason in enumerate(marks["reason"]) if not reason]

    def mark(step: str, reason: str, items: list[int], duplicate_of: dict[int, int]) -> None:
        for item, other in duplicate_of.items():
            page = items[item]
            marks["step"][page], marks["reason"][page] = step, reason
            marks["detail"][page] = urls[items[other]]

    items = alive()
    older = dedup.older_versions([urls[page] for page in items], [dates[page] for page in items])
    mark("url", "older-version", items, older)

    items = alive()
    digests = pages["digest"].take(pa.array(items, pa.int64())).to_pylist()
    mark("exact", "exact-copy", items, dedup.exact_copies(digests, _best_first(items, urls, dates, sizes)))

    items = alive()
    log.message(f"comparing {len(items):,} documents")
    packed = b"".join(pages["signature"].take(pa.array(items, pa.int64())).to_pylist())
    near = dedup.near_copies(
        np.frombuffer(packed, np.uint32).reshape(len(items), knobs.minhash_permutations),
        _ShingleSets(pages["text"], items, knobs.minhash_ngram),
        _best_first(items, urls, dates, sizes),
        knobs.minhash_bands,
        knobs.minhash_threshold,
    )
    mark("near", "near-copy", items, near)
    for name, values in marks.items():
        pages = pages.set_column(pages.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return pages


def _best_first(items: list[int], urls: list[str], dates: list[str], sizes: list[int]) -> list[int]:
    """Places in `items`: the longest first, of equal ones the newest, then by address."""
    by_address = sorted(range(len(items)), key=lambda place: urls[items[place]])
    by_date = sorted(by_address, key=lambda place: dates[items[place]], reverse=True)
    return sorted(by_date, key=lambda place: -sizes[items[place]])


class _ShingleSets:
    """Shingles of a document, made when they are asked for; the latest are kept."""

    KEPT = 2000

    def __init__(self, texts: pa.ChunkedArray, items: list[int], n: int) -> None:
        self.texts, self.items, self.n = texts, items, n
        self.cache: dict[int, np.ndarray] = {}

    def __call__(self, place: int) -> np.ndarray:
        if place not in self.cache:
            if len(self.cache) >= self.KEPT:
                del self.cache[next(iter(self.cache))]
            self.cache[place] = dedup.shingles(hash_words(self.texts[self.items[place]].as_py()), self.n)
        return self.cache[place]


# -- what comes out ----------------------------------------------------------------------------------------------------


def choose_held_out(urls: list[str], share: float) -> np.ndarray:
    """[documents] bool: those whose address hashes low; one at least, if there are two."""
    hashes = np.array([_hash(url) for url in urls], np.uint64)
    chosen = hashes < np.uint64(share * 2**64)
    if share and not chosen.any() and len(urls) > 1:
        chosen[hashes.argmin()] = True
    return chosen


def count_funnel(pages: pa.Table, kept: pa.Table, held_out: np.ndarray) -> dict[str, Any]:
    """Pages in and out of each step, and documents and characters of each part and language."""
    drops = Counter(zip(pages["step"].to_pylist(), pages["reason"].to_pylist()))
    left = pages.num_rows
    steps = []
    for step in STEPS:
        dropped = {reason: count for (at, reason), count in sorted(drops.items()) if at == step}
        steps.append({"step": step, "in": left, "out": left - sum(dropped.values()), "dropped": dropped})
        left = steps[-1]["out"]
    languages = sorted(set(kept["language"].to_pylist()))
    return {
        "steps": steps,
        "parts": _count(kept, "part", PARTS, held_out),
        "languages": _count(kept, "language", languages, held_out),
    }


def _count(kept: pa.Table, column: str, names: Iterable[str], held_out: np.ndarray) -> dict[str, Any]:
    sizes = kept["characters"].to_numpy()
    counts = {}
    for name in names:
        train, other = _is(kept, column, name) & ~held_out, _is(kept, column, name) & held_out
        counts[name] = {
            "documents": int(train.sum()),
            "characters": int(sizes[train].sum()),
            "held_out_documents": int(other.sum()),
            "held_out_characters": int(sizes[other].sum()),
        }
    return counts


def _write_documents(out: Path, kept: pa.Table, held_out: np.ndarray) -> None:
    ids = [f"{_hash(url):016x}" for url in kept["url"].to_pylist()]
    documents = kept.select(COLUMNS).add_column(0, "id", pa.array(ids, pa.string()))
    (out / "documents").mkdir(exist_ok=True)
    for part in PARTS:
        here = _is(documents, "part", part) & ~held_out
        _write_table(documents.filter(pa.array(here)), out / "documents" / f"{part}.parquet")
    _write_table(documents.filter(pa.array(held_out)), out / "held_out.parquet")


def _write_dropped(out: Path, pages: pa.Table) -> None:
    dropped = pages.filter(pa.array(~_is(pages, "reason", "")))
    excerpts = pa.array([text.as_py()[:EXCERPT] for text in dropped["text"]], pa.string())
    table = dropped.select(["url", "origin", "step", "reason", "detail", "title", "language", "characters"])
    _write_table(table.append_column("text", excerpts), out / "dropped.parquet")


def _hash(url: str) -> int:
    return xxhash.xxh3_64_intdigest(url.encode())


def _is(table: pa.Table, column: str, value: str) -> np.ndarray:
    """[rows] bool"""
    return np.array([item == value for item in table[column].to_pylist()], bool)


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _nothing_left(knobs: Corpus, pages: pa.Table) -> str:
    reasons = Counter(pages["reason"].to_pylist()).most_common(5)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons) or "the files hold no page"
    return (
        f"corpus.source = {knobs.source!r}: none of {pages.num_rows} pages was kept ({listed}); bring more pages, or "
        "loosen the knobs of [corpus] that these reasons name"
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
