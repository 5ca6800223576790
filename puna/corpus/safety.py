"""What must not be learned from: blocked sites, pages full of dirty words, pages that a classifier calls unsafe.

Sections 3.1.1: domains known to be harmful or adult are dropped, and adult pages that such lists miss by the dirty
words in them. No list comes with puna. UT1 (Université Toulouse Capitole) and many hosts files list domains, LDNOOBW
dirty words.
"""

import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import numpy as np
import xxhash

from puna.corpus.filters import Text
from puna.corpus.quality import score
from puna.corpus.scripts import SPACELESS
from puna.errors import PunaError
from puna.recipe import Corpus

FEWEST = 3  # different dirty words for which a text is dropped; one or two are a quotation, a cock or an ass
PUNCTUATION = ".,;:!?¡¿\"'()[]{}<>«»“”‘’„*…-—"

# -- blocked domains ---------------------------------------------------------------------------------------------------


def blocked_url(url: str, knobs: Corpus) -> tuple[str, str] | None:
    """(reason, list or keyword) where a page must not be read for its address: `blocked-domain`, `blocked-keyword`."""
    if not (knobs.domain_block_lists or knobs.url_keywords):
        return None
    host, path = split_url(url)
    candidates = np.array([_hash(entry) for entry in _covering(host, path)], np.uint64)
    for name in knobs.domain_block_lists:
        if found := next((block.name for block in load_block_lists(name) if block.holds(candidates)), None):
            return "blocked-domain", found
    words = set(re.split(r"[\W\d_]+", f"{host}/{path}"))
    found = next((word for word in knobs.url_keywords if word.lower() in words), None)
    return None if found is None else ("blocked-keyword", found)


@dataclass(frozen=True)
class BlockList:
    """Hashes of domains and of addresses: eight bytes for each of UT1's five million."""

    name: str
    entries: np.ndarray
    """[entries] uint64, sorted."""

    def holds(self, candidates: np.ndarray) -> bool:
        places = np.searchsorted(self.entries, candidates)
        return bool((self.entries[np.minimum(places, len(self.entries) - 1)] == candidates).any())


@cache
def load_block_lists(name: str) -> tuple[BlockList, ...]:
    """The lists in a file or a folder, each by its own name: the category `adult` of UT1 lies in `adult/domains`."""
    lists = []
    for path in _list_files(name):
        with _open(path) as file:
            entries = np.fromiter((_hash(entry) for line in file for entry in parse_line(line)), np.uint64)
        if len(entries):
            category = path.parent.name if path.name.split(".")[0] in ("domains", "urls") else path.name.split(".")[0]
            lists.append(BlockList(category, np.unique(entries)))
    if not lists:
        raise PunaError(f"corpus.domain_block_lists: {name!r} lists no domain; one belongs on each line")
    return tuple(lists)


def parse_line(line: str) -> Iterator[str]:
    """Domains and addresses in a line of a plain list, a hosts file or an ad blocker's list of domains."""
    words = line.partition("#")[0].lower().split()
    if len(words) > 1 and _is_address(words[0]):  # 0.0.0.0 domain domain
        words = words[1:]
    for word in words:
        word = word.partition("://")[2] or word
        host, slash, path = word.removeprefix("||").removesuffix("^").partition("/")
        host = _plain_host(host)
        if "." in host and host != "0.0.0.0":  # not localhost
            yield host + (slash + path).rstrip("/")


def split_url(url: str) -> tuple[str, str]:
    """Host without `www.` and port, in ASCII, and path with query; both in small letters, empty where there is none."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host = parts.hostname or ""
    except ValueError:
        return "", ""
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            return "", ""
    query = f"?{parts.query}" if parts.query else ""
    return _plain_host(host), f"{parts.path}{query}".strip("/").lower()


def _covering(host: str, path: str) -> Iterator[str]:
    """What a list may hold to block a page: its host, the domains above that, and its address up to any slash."""
    labels = host.split(".")
    above = 1 if _is_address(host) else max(1, len(labels) - 1)
    yield from (".".join(labels[start:]) for start in range(above))
    prefix = host
    for segment in path.split("/") if path else []:
        prefix += f"/{segment}"
        yield prefix


def _plain_host(host: str) -> str:
    return host.removeprefix("*").strip(".").removeprefix("www.")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _hash(entry: str) -> int:
    return xxhash.xxh3_64_intdigest(entry.encode("utf-8", "replace"))


# -- dirty words -------------------------------------------------------------------------------------------------------


def dirty_words(text: Text, knobs: Corpus) -> str | None:
    """`dirty-words` for a text with too many of them; a language without a list is not judged."""
    words = load_dirty_words(knobs.dirty_words, text.language) if knobs.dirty_words else None
    if not words:
        return None
    found = words.count(text)
    limit = knobs.rules_for(text.language).max_dirty_word_fraction * len(text.words)
    return "dirty-words" if len(found) >= FEWEST and found.total() > limit else None


@dataclass(frozen=True)
class DirtyWords:
    single: frozenset[str]
    phrases: dict[str, tuple[str, ...]]
    """By their first word."""

    def count(self, text: Text) -> Counter[str]:
        """How often each comes; in a language without spaces, how many characters each covers."""
        if text.language in SPACELESS:
            plain = text.text.lower()
            return +Counter({word: plain.count(word) * len(word) for word in self.single})
        found: Counter[str] = Counter()
        plain = {}
        for written, count in text.word_counts.items():
            word = plain[written] = written.strip(PUNCTUATION).lower()
            if word in self.single:
                found[word] += count
        if firsts := self.phrases.keys() & plain.values():
            joined = f" {' '.join(plain[word] for word in text.words)} "
            for phrase in (phrase for first in firsts for phrase in self.phrases[first]):
                found[phrase] += len(re.findall(f"(?<= ){re.escape(phrase)}(?= )", joined))
        return +found


@cache
def load_dirty_words(folder: str, language: str) -> DirtyWords | None:
    """The list of a language: a file named by its code, with .txt, .gz or nothing behind, a word or phrase a line."""
    if not Path(folder).is_dir():
        raise PunaError(
            f"corpus.dirty_words = {folder!r}: there is no such folder; its files are named en, de.txt, ..."
        )
    paths = [Path(folder) / f"{language}{ending}" for ending in ("", ".txt", ".gz", ".txt.gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    with _open(path) as file:
        entries = sorted({" ".join(line.lower().split()) for line in file} - {""})
    phrases: dict[str, tuple[str, ...]] = {}
    if language in SPACELESS:
        return DirtyWords(frozenset(entries), phrases)
    for entry in entries:
        first, space, _ = entry.partition(" ")
        if space:
            phrases[first] = (*phrases.get(first, ()), entry)
    return DirtyWords(frozenset(entry for entry in entries if " " not in entry), phrases)


# -- unsafe pages ------------------------------------------------------------------------------------------------------


def unsafe_scores(texts: Sequence[str], knobs: Corpus) -> np.ndarray | None:
    """[texts] probability that each is unsafe, by `unsafe_model`; None without one. Drop those above the threshold."""
    return score(knobs.unsafe_model, texts) if knobs.unsafe_model else None


# -- files -------------------------------------------------------------------------------------------------------------


def outside_digest(knobs: Corpus) -> str:
    """Changes with what the lists and models named by these knobs hold."""
    named = [*knobs.domain_block_lists, knobs.dirty_words, knobs.unsafe_model and knobs.unsafe_model.partition("#")[0]]
    digest = hashlib.sha256()
    for name in filter(None, named):
        for path in _list_files(name):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _list_files(name: str) -> list[Path]:
    """The file, or the files of lists in a folder and its folders: all, or UT1's `domains` and `urls`."""
    path = Path(name)
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    listed = [file for file in files if file.name.split(".")[0] in ("domains", "urls")]
    if not files:
        raise PunaError(f"there is no list at {name!r}, which [corpus] names")
    return listed or files


def _open(path: Path) -> IO[str]:
    open_text = gzip.open if path.suffix == ".gz" else open
    return open_text(path, "rt", encoding="utf-8", errors="replace")
