"""Duplicates over the whole corpus: the same address, the same words, nearly the same text (section 3.1.1).

The shards give small tables of keys, one row a document; from them DuckDB finds the first two kinds, `near.py` the
third. Texts are fetched only to verify near copies, in batches. Memory is bounded by `corpus.memory_gb`, and the
result depends on neither threads nor the order in which shards were made.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from puna.corpus.near import Texts, find_near_copies
from puna.corpus.tables import BATCH, connect, quote, scan, write
from puna.errors import PunaError
from puna.recipe import Corpus

KEYS = pa.schema(
    {
        "doc": pa.int64(),
        "url_key": pa.uint64(),
        "date": pa.string(),
        "language": pa.string(),
        "characters": pa.int64(),
        "digest": pa.binary(),
        "signature": pa.binary(),
    }
)
"""A shard's table: see `url_key` and `minhash.text_keys`; `date` sorts as text, `url_key` may be null."""
ROWS = pa.schema([*(KEYS.field(name) for name in KEYS.names[:-1]), ("row", pa.int64())])
DUPLICATES = pa.schema({"doc": pa.int64(), "step": pa.string(), "reason": pa.string(), "other": pa.int64()})

TRACKING = re.compile(r"utm_\w+|gclid|dclid|fbclid|msclkid|yclid|mc_cid|mc_eid|igshid", re.IGNORECASE)
DEFAULT_PORTS = {"http": 80, "https": 443}
BEST_FIRST = "characters DESC, date DESC, doc"
"""The longest of like documents stays, of equal ones the newest, then the first read."""


def url_key(url: str) -> int | None:
    """A hash of the address by which versions of a page are told, 64 bits; None where there is no address."""
    address = normalise_url(url)
    return xxhash.xxh3_64_intdigest(address.encode("utf-8", "surrogatepass")) if address else None


def normalise_url(url: str) -> str:
    """The address without what does not choose the page.

    Scheme and host are case-insensitive, a default port and an empty path mean what their absence means (RFC 3986,
    6.2), and a fragment is not sent to the server. http and https are one, as in the keys of Common Crawl's index,
    because sites moved from one to the other. Parameters that advertisers add to count visitors are dropped; all other
    parameters stay, in their order, because a server may look at them.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets or ports that are none
        return url.strip()
    if not host:
        return url.strip()
    scheme = parts.scheme.lower()
    shown_port = "" if port in (None, DEFAULT_PORTS.get(scheme)) else f":{port}"
    parameters = [item for item in parts.query.split("&") if not TRACKING.fullmatch(item.partition("=")[0])]
    query = "?" + "&".join(parameters) if any(parameters) else ""
    return f"{'' if scheme in DEFAULT_PORTS else scheme + ':'}//{host}{shown_port}{parts.path or '/'}{query}"


def find_duplicates(keys: Sequence[Path], texts: Texts, knobs: Corpus, work: Path) -> Path:
    """The documents to drop, as a Parquet file of DUPLICATES in `work`, sorted by doc.

    keys: Parquet files of KEYS, in order. Step `url` (`older-version`): another document of its address, of any
    language, is newer. Step `exact` (`exact-copy`): another of its language has the same words. Step `near`
    (`near-copy`): another of its language that is kept has a Jaccard similarity of `minhash_threshold` or more.
    `other` is that document. Each step looks at what the one before it left.
    """
    scratch = work / "duplicates"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    signatures = scratch / "signatures.bin"
    pages = scan(write(scratch / "rows.parquet", ROWS, _split_signatures(keys, signatures, knobs)))
    with connect(knobs, scratch) as db:

        def save(name: str, query: str) -> Path:
            db.execute(f"COPY ({query}) TO {quote(scratch / name)} (FORMAT parquet)")
            return scratch / name

        url = save("url.parquet", _all_but_first(pages, "url_key", "date DESC, doc"))
        left = f"(SELECT * FROM {pages} p ANTI JOIN {scan(url)} q USING (doc))"
        exact = save("exact.parquet", _all_but_first(left, "language, digest", BEST_FIRST))
        left = f"(SELECT * FROM {left} p ANTI JOIN {scan(exact)} q USING (doc))"
        best_first = f"SELECT doc, row, language, characters FROM {left} ORDER BY {BEST_FIRST}"
        near = find_near_copies(db, save("ranked.parquet", best_first), signatures, texts, knobs, scratch)
        steps = (url, "url", "older-version"), (exact, "exact", "exact-copy"), (near, "near", "near-copy")
        selected = (
            f"SELECT doc, '{step}' AS step, '{reason}' AS reason, other FROM {scan(path)}"
            for path, step, reason in steps
        )
        found = db.sql(" UNION ALL ".join(selected) + " ORDER BY doc").to_arrow_reader(BATCH)
        result = write(work / "duplicates.parquet", DUPLICATES, found)
    shutil.rmtree(scratch)
    return result


def _all_but_first(pages: str, key: str, order: str) -> str:
    """SQL: the documents (doc) that share a key with one that comes before them by `order` (other)."""
    known = " AND ".join(f"{column} IS NOT NULL" for column in key.split(", "))
    return (
        f"WITH shared AS (SELECT {key} FROM {pages} WHERE {known} GROUP BY {key} HAVING count(*) > 1), "
        f"ordered AS (SELECT doc, first_value(doc) OVER (PARTITION BY {key} ORDER BY {order}) AS other "
        f"FROM {pages} p SEMI JOIN shared USING ({key})) SELECT doc, other FROM ordered WHERE doc <> other"
    )


def _split_signatures(keys: Sequence[Path], signatures: Path, knobs: Corpus) -> Iterator[pa.RecordBatch]:
    """The tables one after another, with each document's row in the file that takes the signatures, [rows,
    permutations] uint32: no sort or join has to move those."""
    size = 4 * knobs.minhash_permutations
    row = 0
    with open(signatures, "wb") as file:
        for path in keys:
            for batch in pq.ParquetFile(path).iter_batches(BATCH):
                packed = b"".join(batch["signature"].to_pylist())
                if len(packed) != size * len(batch):
                    raise PunaError(
                        f"{path}: signatures of {len(packed) / len(batch):g} bytes, but corpus.minhash_permutations = "
                        f"{knobs.minhash_permutations} makes {size}; delete the file and run again"
                    )
                file.write(packed)
                columns = {name: batch[name] for name in KEYS.names[:-1]}
                columns |= {name: columns[name].fill_null("") for name in ("date", "language")}
                columns["row"] = pa.array(np.arange(row, row + len(batch)))
                yield pa.record_batch(columns).cast(ROWS)
                row += len(batch)
