"""Page by page: read, extract, tell the language, filter, prepare for the search of duplicates.

A shard is some files; its verdicts go to one Arrow file, written aside and renamed when whole. Nothing here depends
on another page, on the number of processes or on time, so a shard that is there need not be done again.
"""

import os
import threading
from dataclasses import dataclass, fields
from multiprocessing import parent_process
from pathlib import Path

import pyarrow as pa
import xxhash

from puna.corpus import dedup
from puna.corpus.extract import UnusablePageError, decode, extract
from puna.corpus.filters import Text, reason_to_drop
from puna.corpus.language import identify
from puna.corpus.parts import part_of
from puna.corpus.read import RawPage, SetAside, find_files, read
from puna.recipe import Corpus

SHARD_FILES = 64  # HTML files in a shard; an archive is one of its own

SCHEMA = pa.schema(
    {
        "url": pa.string(),
        "origin": pa.string(),
        "date": pa.string(),
        "part": pa.string(),
        "title": pa.string(),
        "language": pa.string(),
        "language_score": pa.float32(),
        "text": pa.large_string(),
        "characters": pa.int64(),
        "step": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "digest": pa.binary(),
        "signature": pa.binary(),
    }
)


@dataclass
class Verdict:
    """All that is known of a page; one with a `reason` is dropped, at `step`. The columns of SCHEMA."""

    url: str
    origin: str
    date: str = ""
    part: str = ""
    title: str = ""
    language: str = ""
    language_score: float = 0.0
    text: str = ""
    characters: int = 0
    step: str = ""
    reason: str = ""
    detail: str = ""
    digest: bytes = b""
    """Of the words, without case, punctuation and spacing."""
    signature: bytes = b""
    """MinHash, [permutations] uint32."""

    def drop(self, step: str, reason: str, detail: str = "") -> "Verdict":
        self.step, self.reason, self.detail = step, reason, detail
        return self


@dataclass(frozen=True)
class Shard:
    """Files to read, and the file that takes the verdicts."""

    files: list[Path]
    source: Path
    target: Path
    limit: int | None
    """Pages to read at most."""
    knobs: Corpus


def make_shards(source: Path, work: Path, knobs: Corpus) -> list[Shard]:
    """Cut a source into shards. `max_documents` takes pages by the hash of their name, archives from the start."""
    warcs, pages = find_files(source)
    warc_limit = None
    if limit := knobs.max_documents:
        room = -(-limit // 2) if warcs and pages else limit
        names = {path: path.relative_to(source.parent).as_posix().encode() for path in pages}
        pages = sorted(sorted(pages, key=lambda path: xxhash.xxh3_64_digest(names[path]))[:room])
        warcs = warcs[:room]
        warc_limit = room // len(warcs) if warcs else None
    groups = [[path] for path in warcs]
    groups += [pages[start : start + SHARD_FILES] for start in range(0, len(pages), SHARD_FILES)]
    return [
        Shard(files, source, work / f"{number:06d}.arrow", warc_limit if number < len(warcs) else None, knobs)
        for number, files in enumerate(groups)
    ]


def process_shard(shard: Shard) -> None:
    """Read and judge the pages of a shard."""
    verdicts: list[Verdict] = []
    for path in shard.files:
        for page in read(path, shard.source, shard.knobs.max_page_bytes):
            if shard.limit is not None and len(verdicts) >= shard.limit:
                break
            verdicts.append(judge(page, shard.knobs))
    columns = {field.name: [getattr(v, field.name) for v in verdicts] for field in fields(Verdict)}
    aside = shard.target.with_suffix(".aside")
    with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=SCHEMA))
    aside.rename(shard.target)


def die_with_parent() -> None:
    """For the processes of a pool, which would otherwise wait for work for ever when their parent is killed."""
    if parent := parent_process():

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def load_shard(shard: Shard) -> pa.Table:
    """The verdicts of a shard; the file is mapped, so texts take no memory until they are looked at."""
    return pa.ipc.open_file(pa.memory_map(str(shard.target))).read_all()


def judge(page: RawPage | SetAside, knobs: Corpus) -> Verdict:
    """Take a page through the steps that need no other page. Raises nothing, whatever the page holds."""
    if isinstance(page, SetAside):
        return Verdict(page.url, page.origin).drop("read", page.reason, page.detail)
    verdict = Verdict(page.url, page.origin, page.date or "")
    try:
        return _judge(verdict, page, knobs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the parser is written in Rust, whose panics are no Exceptions
        return verdict.drop("extract", "poison-page", f"{type(error).__name__}: {error}")


def _judge(verdict: Verdict, page: RawPage, knobs: Corpus) -> Verdict:
    try:
        content = extract(decode(page.html, page.charset))
    except UnusablePageError as error:
        return verdict.drop("extract", "too-deep", str(error))
    verdict.title, verdict.text, verdict.characters = content.title, content.text, len(content.text)
    if not content.text:
        return verdict.drop("extract", "no-text")
    text = Text(content.text, "")
    if len(text.words) >= knobs.min_words:  # a few words are of no language
        verdict.language, verdict.language_score = identify(content.text)
        if verdict.language not in knobs.languages:
            return verdict.drop("language", "other-language", verdict.language)
    text.language = verdict.language
    if reason := reason_to_drop(text, knobs):
        return verdict.drop("filter", reason)
    verdict.part = part_of(content.text, verdict.language, page.part)
    verdict.digest = xxhash.xxh3_128_digest(text.hashes.tobytes())
    shingle_set = dedup.shingles(text.hashes, knobs.minhash_ngram)
    verdict.signature = dedup.signature(shingle_set, knobs.minhash_permutations).tobytes()
    return verdict
