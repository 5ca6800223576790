"""Where files come from: folders, other file systems, a crawl's list of paths."""

import gzip
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from puna.corpus import source
from puna.corpus.read import RawPage, read, read_original
from puna.corpus.source import File, digest, find_files
from puna.errors import PunaError
from puna.recipe import Corpus
from tests.serving import serving

from .conftest import http, page, prose, record

ARCHIVE = gzip.compress(record(http(page(prose(1)))))
KNOBS = Corpus()  # pyright: ignore[reportCallIssue]


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """A place that is no folder of this machine."""
    system = fsspec.filesystem("memory")
    for name, content in {
        "a/b.warc.gz": ARCHIVE,
        "c.html": page(prose(2)),
        "notes.txt": b"",
        "a/x.jsonl": b"{}",
    }.items():
        system.pipe(f"/site/{name}", content)
    yield "memory://site"
    system.rm("/site", recursive=True)


def test_files_of_any_file_system(elsewhere: str, tmp_path: Path) -> None:
    files = find_files(elsewhere)
    assert [(file.name, file.kind, file.remote) for file in files] == [
        ("a/b.warc.gz", "warc", True),
        ("a/x.jsonl", "jsonl", True),
        ("c.html", "html", True),
    ]
    pages = [item for file in files for item in read(file, tmp_path, KNOBS)]
    assert [isinstance(item, RawPage) for item in pages] == [True, False, True]
    assert pages[0].origin == "a/b.warc.gz"
    assert read_original(files[0], 0, tmp_path, KNOBS) == pages[0]
    assert list(tmp_path.iterdir()) == [], "the copies are gone"
    [one] = find_files(f"{elsewhere}/c.html")
    assert one.name == "c.html"


def test_a_changed_file_changes_the_digest(elsewhere: str) -> None:
    before = digest(find_files(elsewhere))
    assert before == digest(find_files(elsewhere))
    fsspec.filesystem("memory").pipe("/site/c.html", b"other")
    assert before != digest(find_files(elsewhere))
    assert digest(find_files(elsewhere, name="web")) != digest(find_files(elsewhere))


def test_a_file_that_is_gone_is_set_aside(elsewhere: str, tmp_path: Path) -> None:
    [item] = read(File(f"{elsewhere}/gone.warc", "gone.warc", ""), tmp_path, KNOBS)
    assert (item.origin, getattr(item, "reason", "")) == ("gone.warc", "unreadable")


def test_a_place_that_does_not_answer_stops_the_run(elsewhere: str, tmp_path: Path, monkeypatch) -> None:
    class Silent:
        calls = 0

        def get_file(self, address: str, path: str) -> None:
            Silent.calls += 1
            if Silent.calls < 3:
                raise TimeoutError("no answer")
            Path(path).write_bytes(b"here")

    waits = []
    monkeypatch.setattr(source, "_filesystem", lambda address: (Silent(), address))
    monkeypatch.setattr(source.time, "sleep", waits.append)
    file = File("memory://site/a.warc", "a.warc", "")
    with file.local(tmp_path) as path:
        assert path.read_bytes() == b"here"
    assert waits == [1, 4]
    Silent.calls = -10
    with pytest.raises(PunaError, match="cannot be fetched: TimeoutError: no answer; finished shards are kept"):
        list(read(file, tmp_path, KNOBS))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server of a folder with one archive in it."""
    pytest.importorskip("aiohttp")
    root = tmp_path / "served"
    (root / "crawl").mkdir(parents=True)
    (root / "crawl" / "a.warc.gz").write_bytes(ARCHIVE)
    handler = partial(QuietHandler, directory=str(root))
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_files_over_http(server: str, tmp_path: Path) -> None:
    for place in (f"{server}/crawl/a.warc.gz", f"{server}/crawl/"):
        [file] = find_files(place)
        assert file.name == "a.warc.gz"
        [item] = read(file, tmp_path, KNOBS)
        assert item.url == "https://example.org/a"
    [gone] = read(File(f"{server}/gone.warc", "gone.warc", ""), tmp_path, KNOBS)
    assert getattr(gone, "reason", "") == "unreadable"


@pytest.mark.parametrize("base", ["folder", "memory"])
def test_a_crawl(base: str, tmp_path: Path) -> None:
    paths = [f"crawl-data/CC-TEST/segments/{n}/warc/{n}.warc.gz" for n in (2, 1, 3)]
    listing = gzip.compress("".join(f"{path}\n" for path in paths).encode())
    contents = {"crawl-data/CC-TEST/warc.paths.gz": listing} | dict.fromkeys(paths, ARCHIVE)
    root = str(tmp_path) if base == "folder" else "memory://mirror"
    system, start = fsspec.core.url_to_fs(root)
    for name, content in contents.items():
        system.makedirs(f"{start}/{name}".rpartition("/")[0], exist_ok=True)
        system.pipe(f"{start}/{name}", content)
    files = find_files("commoncrawl:CC-TEST", f"{root}/", "web")
    assert [file.name for file in files] == sorted(paths)
    assert {file.source for file in files} == {"web"}
    [item] = read(files[0], tmp_path, KNOBS)
    assert item.url == "https://example.org/a"


def test_places_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match=r"corpus.source = .*nowhere.* does not exist; name a folder"):
        find_files(str(tmp_path / "nowhere"))
    with pytest.raises(PunaError, match=r"holds no file that ends in \.warc"):
        find_files(str(tmp_path))
    with pytest.raises(PunaError, match=r"memory://nowhere' cannot be listed"):
        find_files("memory://nowhere")
    with pytest.raises(PunaError, match=r"odd://a cannot be opened: .*odd"):
        find_files("odd://a")
    with pytest.raises(PunaError, match=r"commoncrawl:CC-NONE': .*warc.paths.gz cannot be read .* named like CC-MAIN-"):
        find_files("commoncrawl:CC-NONE", str(tmp_path))
