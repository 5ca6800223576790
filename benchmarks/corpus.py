"""The corpus stage whole: its memory and time as the input grows, and its CPU time beside datatrove's.

    python benchmarks/corpus.py make pages.warc.gz --pages 1000       # an archive of the demo's pages
    python benchmarks/corpus.py scale --pages 1000                    # 1, 4 and 16 times as many pages
    python benchmarks/corpus.py compare pages.warc.gz --datatrove PYTHON   # a Python that has datatrove[io,processing]

`make` and `scale` multiply the demo's pages: in each copy three words of ten are replaced by others of the same page,
so that the copies are pages of their own and few are near-duplicates. Every run is a process of its own, whose CPU time
is that of all its processes together, and whose memory is the largest sum of theirs (proportional set size, so that
what they share counts once).
"""

import argparse
import gzip
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

WORD = re.compile(r"(?<=[>\s])[A-Za-z]{3,}(?=[\s.,<])")
ARCHIVE_PAGES = 500
CORPUS = """
import json, sys
from pathlib import Path
from puna.corpus import corpus
from puna.log import Log
from puna.recipe import parse_recipe
if __name__ == "__main__":
    folder, knobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    (folder / "corpus").mkdir(parents=True)
    recipe = parse_recipe({"name": "benchmark", "corpus": knobs}, "here")
    corpus.run(recipe, {}, folder / "corpus", Log(folder / "log", "corpus"))
"""
# What the two have in common: read, extract, tell the language, Gopher's rules, near-duplicates. puna does more beside.
DATATROVE = """
import sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature)
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
if __name__ == "__main__":
    import py3langid
    source, folder = sys.argv[1:]
    def language(document):
        return py3langid.classify(document.text)[0] == "en"
    config = MinhashConfig(hash_config=HashConfig(precision=64), n_grams=5, num_buckets=14, hashes_per_bucket=8)
    class InProcess(Trafilatura):
        def run(self, data, rank=0, world_size=1):  # without a process apart to watch the time: to its favour
            for document in data:
                try:
                    document.text = self.extract(document.text)
                except Exception:
                    continue
                if document.text:
                    yield document
    steps = [WarcReader(source), InProcess(favour_precision=True), LambdaFilter(language),
             GopherRepetitionFilter(), GopherQualityFilter(), JsonlWriter(f"{folder}/filtered")]
    stages = [
        steps,
        [JsonlReader(f"{folder}/filtered"), MinhashDedupSignature(f"{folder}/signatures", config)],
        [MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)],
        [MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config)],
        [JsonlReader(f"{folder}/filtered"), MinhashDedupFilter(f"{folder}/remove"), JsonlWriter(f"{folder}/kept")],
    ]
    for number, stage in enumerate(stages):
        tasks = 14 if number == 2 else 1
        LocalPipelineExecutor(stage, tasks=tasks, workers=1, logging_dir=f"{folder}/log{number}").run()
"""


# -- input -------------------------------------------------------------------------------------------------------------


def demo_pages() -> list[bytes]:
    """HTML of the demo corpus, in an order of its own."""
    from puna.corpus import demo
    from puna.log import Log

    with tempfile.TemporaryDirectory() as folder:
        fetched = demo.fetch(demo.cache_folder(), Log(Path(folder), "benchmark"))
    paths = sorted(fetched.folder.rglob("*.html.gz"))
    random.Random(0).shuffle(paths)
    return [gzip.decompress(path.read_bytes()) for path in paths]


def multiply(pages: list[bytes], count: int) -> Iterator[tuple[str, bytes]]:
    """(address, page): the pages, and when they are through changed copies of them."""
    for number in range(count):
        page = pages[number % len(pages)]
        yield f"https://site{number % 97}.example/{number}", change(page, number) if number >= len(pages) else page


def change(page: bytes, seed: int) -> bytes:
    """The page with other words of its own in three places of ten."""
    text = page.decode("utf-8", "replace")
    pick = random.Random(seed)
    words = WORD.findall(text)
    return WORD.sub(lambda found: pick.choice(words) if pick.random() < 0.3 else found[0], text).encode()


def record(url: str, page: bytes) -> bytes:
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        f"WARC-Target-URI: {url}\r\nWARC-Date: 2024-05-06T07:08:09Z\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def make_archives(folder: Path, pages: list[bytes], count: int) -> None:
    folder.mkdir(parents=True)
    handle = None
    for number, (url, page) in enumerate(multiply(pages, count)):
        if number % ARCHIVE_PAGES == 0:
            if handle:
                handle.close()
            handle = (folder / f"{number // ARCHIVE_PAGES:05d}.warc.gz").open("wb")
        assert handle
        handle.write(gzip.compress(record(url, page), 3, mtime=0))
    if handle:
        handle.close()


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(command: list[str]) -> dict[str, float]:
    """CPU seconds and largest memory of a command and its children. Ends this program if the command fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    peak = [0.0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            peak[0] = max(peak[0], memory_of(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, said = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(said.decode()[-4000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "mb": peak[0] / 1e6}


def memory_of(pid: int) -> float:
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:
        return 0
    return total


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run_puna(source: Path, folder: Path, **knobs: Any) -> dict[str, float]:
    script = folder / "run_puna.py"
    script.write_text(CORPUS)
    knobs = {"source": str(source), **knobs}
    return measure([sys.executable, str(script), str(folder / "run"), json.dumps(knobs)])


def kept_of(run: Path) -> tuple[int, int]:
    funnel = json.loads((run / "corpus" / "funnel.json").read_text())
    return funnel["steps"][0]["in"], funnel["steps"][-1]["out"]


# -- commands ----------------------------------------------------------------------------------------------------------


def scale(arguments: argparse.Namespace) -> None:
    pages = demo_pages()[: arguments.pages]
    print(
        "| times | pages | kept | MB of HTML | CPU s | ms a page | peak MB |\n|---|---|---|---|---|---|---|", flush=True
    )
    for times in arguments.times:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            source = Path(folder) / "source"
            make_archives(source, pages, times * len(pages))
            size = sum(map(len, pages)) * times / 1e6
            found = run_puna(source, Path(folder), workers=arguments.workers, memory_gb=arguments.memory_gb)
            count, kept = kept_of(Path(folder) / "run")
            each = 1000 * found["cpu"] / count
            row = f"{times} | {count:,} | {kept:,} | {size:,.0f} | {found['cpu']:.1f} | {each:.1f} | {found['mb']:,.0f}"
            print(f"| {row} |", flush=True)


def compare(arguments: argparse.Namespace) -> None:
    ratios = []
    for turn in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folder = Path(name)
            shutil.copy(arguments.archive, folder / "pages.warc.gz")
            less = {"languages": ["en"], "pii": [], "line_repeats": 0}  # what datatrove does not do here
            ours = run_puna(folder / "pages.warc.gz", folder, workers=1, **less)
            (folder / "source").mkdir()
            shutil.move(folder / "pages.warc.gz", folder / "source")
            (folder / "peer.py").write_text(DATATROVE)
            peer = [arguments.datatrove, str(folder / "peer.py"), str(folder / "source"), str(folder / "peer")]
            theirs = measure(peer)
            count, kept = kept_of(folder / "run")
            lines = (gzip.decompress(path.read_bytes()) for path in (folder / "peer" / "kept").glob("*.gz"))
            their_kept = sum(data.count(b"\n") for data in lines)
        ratios.append(theirs["cpu"] / ours["cpu"])
        each = 1000 * ours["cpu"] / count, 1000 * theirs["cpu"] / count
        print(f"round {turn + 1}: {count:,} pages; puna {each[0]:.1f} ms a page, {kept:,} kept, {ours['mb']:,.0f} MB; ")
        print(
            f"  datatrove {each[1]:.1f} ms, {their_kept:,} kept, {theirs['mb']:,.0f} MB; ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"ratio, median: {sorted(ratios)[len(ratios) // 2]:.2f}")


def make(arguments: argparse.Namespace) -> None:
    with arguments.archive.open("wb") as handle:
        for url, page in multiply(demo_pages()[: arguments.pages], arguments.pages):
            handle.write(gzip.compress(record(url, page), 3, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (make, scale, compare):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        command.add_argument("--folder", type=Path, help="where temporary folders go")
        if function is not scale:
            command.add_argument("archive", type=Path)
        if function is not compare:
            command.add_argument("--pages", type=int, default=1000)
        if function is scale:
            command.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
            command.add_argument("--workers", type=int, default=2)
            command.add_argument("--memory-gb", type=float, default=0.5)
        if function is compare:
            command.add_argument("--datatrove", required=True, help="a Python that has datatrove[io,processing]")
            command.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
