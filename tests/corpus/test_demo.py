"""The demo corpus: apt by tools that only pretend, the way down to the last resort, and apt itself where it works."""

import gzip
import io
import sys
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from puna.corpus import demo
from puna.corpus.apt import Apt, Package, files_of
from puna.corpus.extract import decode, extract
from puna.corpus.read import RawPage, read
from puna.corpus.source import find_files
from puna.errors import PunaError
from puna.recipe import Corpus

from .conftest import page, prose

HTML = page(prose(1))
FAKE = """#!{python}
import os, sys, pathlib
store = pathlib.Path({store!r})
name, words = pathlib.Path(sys.argv[0]).name, [w for w in sys.argv[1:] if w[0] != "-" and "=" not in w]
with (store / "calls").open("a") as calls:
    calls.write(" ".join([name, *sys.argv[1:]]) + chr(10))
if name == "apt-cache":
    for package in words[1:]:
        stanza = store / (package + ".stanza")
        if stanza.exists():
            print(stanza.read_text() + chr(10))
elif name == "apt-get" and words[0] == "download":
    for package in words[1:]:
        deb = store / (package + ".deb")
        if deb.exists():
            pathlib.Path(package + "_1_all.deb").write_bytes(deb.read_bytes())
elif name == "dpkg-deb":
    sys.stdout.buffer.write(pathlib.Path(sys.argv[-1]).read_bytes())
"""


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1_600_000_000
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> Path:
    """A system whose apt-get, apt-cache and dpkg-deb hand out what lies in this folder."""
    folder = tmp_path / "store"
    tools = tmp_path / "tools"
    for path in (folder, tools):
        path.mkdir()
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (tools / name).write_text(FAKE.format(python=sys.executable, store=str(folder)))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    return folder


def offer(store: Path, name: str, files: dict[str, bytes], depends: str = "", cut: int = 0) -> None:
    content = tar({f"./usr/share/doc/{path}": data for path, data in files.items()})
    (store / f"{name}.deb").write_bytes(content[: len(content) - cut])
    lines = [f"Package: {name}", "Version: 1.2-3", f"Size: {len(content)}"]
    lines += [f"Depends: {depends}"] if depends else []
    (store / f"{name}.stanza").write_text("\n".join(lines) + "\n")


def test_packages_are_fetched_and_unpacked(store: Path, tmp_path: Path, log) -> None:
    offer(store, "git-doc", {"git-doc/a.html": HTML, "git-doc/copyright": b"GPL-2", "git-doc/logo.png": b"x"})
    offer(store, "python3-doc", {"python3-doc/copyright": b"PSF"}, depends="python3.99-doc (>= 3.99), libjs-sphinxdoc")
    offer(store, "python3.99-doc", {"python3.99/html/library/b.html.gz": gzip.compress(HTML)})
    offer(store, "r-doc-html", {"r-doc-html/manual.html": HTML}, cut=100)
    found = demo.fetch(tmp_path / "cache", log)
    assert found.kind == "debian packages"
    assert [(p["name"], p["part"], p["version"]) for p in found.packages] == [
        ("git-doc", "general", "1.2-3"),
        ("python3.99-doc", "code", "1.2-3"),
    ]
    pages = find_files(str(found.folder))
    assert [file.name for file in pages] == [
        "code/python3.99-doc/python3.99/html/library/b.html.gz",
        "general/git-doc/git-doc/a.html.gz",
    ]
    [first] = read(pages[0], tmp_path, Corpus())  # pyright: ignore[reportCallIssue]
    assert isinstance(first, RawPage)
    assert (first.html, first.part, first.date) == (HTML, "code", "2020-09-13T12:26:40Z")
    assert (found.folder.parent / "licences" / "git-doc.txt").read_text() == "GPL-2"
    said = " ".join(log.messages)
    assert "this system has no abs-guide, apache2-doc" in said
    assert "r-doc-html could not be fetched; going on without it" in said
    # nothing of the system's apt is written to, and nothing is left over
    calls = (store / "calls").read_text()
    assert calls.count("apt-get") == 2
    assert f"-o Dir::State={tmp_path}/cache/" in calls
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".lock", found.folder.parent.name]


def test_the_second_time_nothing_is_fetched(store: Path, tmp_path: Path, log) -> None:
    offer(store, "git-doc", {"git-doc/a.html": HTML})
    first = demo.fetch(tmp_path / "cache", log)
    (store / "calls").unlink()
    assert demo.fetch(tmp_path / "cache", log) == first
    assert not (store / "calls").exists()


def test_a_fetch_that_was_killed_is_begun_again(store: Path, tmp_path: Path, log) -> None:
    offer(store, "git-doc", {"git-doc/a.html": HTML})
    left = tmp_path / "cache" / f"demo-{demo.demo_digest()}.partial"
    (left / "apt" / "state").mkdir(parents=True)
    assert len(find_files(str(demo.fetch(tmp_path / "cache", log).folder))) == 1
    assert not left.exists()


@pytest.fixture
def no_apt(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def test_python_s_archive_where_there_is_no_apt(no_apt, tmp_path: Path, log, monkeypatch) -> None:
    def urlopen(url: str, timeout: float) -> Any:
        assert timeout > 0
        if "/fr/" in url:
            raise urllib.error.URLError("no route to host")
        assert url.startswith("https://docs.python.org/")
        names = ("library/json", "library/statistics", "howto/sorting")
        return io.BytesIO(tar({f"python-docs/{name}.html": HTML for name in names}, "w:bz2"))

    monkeypatch.setattr(demo.urllib.request, "urlopen", urlopen)
    found = demo.fetch(tmp_path / "cache", log)
    assert found.kind == "python documentation archive"
    names = [file.name for file in find_files(str(found.folder))]
    assert "code/python-docs-en/python-docs/library/json.html.gz" in names
    assert "math/python-docs-en/python-docs/library/statistics.html.gz" in names
    assert "general/python-docs-en/python-docs/howto/sorting.html.gz" in names
    assert "multilingual/python-docs-es/python-docs/library/json.html.gz" in names
    assert len(names) == 6
    assert any("/fr/" in message and "going on without it" in message for message in log.messages)


def test_pydoc_where_there_is_no_network(no_apt, tmp_path: Path, log, monkeypatch) -> None:
    def urlopen(url: str, timeout: float) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(demo.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(demo, "SILENT", sys.stdlib_module_names - {"fractions", "html", "msvcrt", "nt"})
    monkeypatch.setattr(demo, "PYDOC_PACKAGES", ("no_such_package",))
    found = demo.fetch(tmp_path / "cache", log)
    assert found.kind == "pydoc pages"
    pages = {path.name: path for path in map(Path, (file.path for file in find_files(str(found.folder))))}
    assert pages.keys() == {f"{name}.html.gz" for name in ("fractions", "html", "html.entities", "html.parser")}
    assert pages["fractions.html.gz"].relative_to(found.folder).parts[0] == "math"
    assert "rational number" in extract(decode(gzip.decompress(pages["fractions.html.gz"].read_bytes()))).text
    assert [message.partition(":")[0] for message in log.messages[:2]] == [
        "no debian packages",
        "no python documentation archive",
    ]


def test_with_no_place_left_the_message_says_what_to_do(no_apt, tmp_path: Path, log, monkeypatch) -> None:
    def fail(*_: Any) -> list[demo.Record]:
        raise PunaError("out of order")

    monkeypatch.setattr(demo, "python_archive", fail)
    monkeypatch.setattr(demo, "pydoc_pages", fail)
    with pytest.raises(PunaError, match=r"set corpus.source to a folder of your own pages.*no apt-get.*out of order"):
        demo.fetch(tmp_path / "cache", log)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".partial"] == [".lock"]


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("./usr/share/doc/x/a.html", "x/a.html.gz"),
        ("usr/share/doc/x/A.HTM", None),
        ("x/a.htm", "x/a.html.gz"),
        ("x/a.xhtml", "x/a.html.gz"),
        ("x/a.html.gz", "x/a.html.gz"),
        ("x/index.html.fr.utf8", "x/index.fr.utf8.html.gz"),
        ("x/index.html.zh-cn.utf8", "x/index.zh-cn.utf8.html.gz"),
        ("x/a.png", None),
        ("x/a.html.orig.old.bak", None),
        ("../../etc/a.html", None),
        ("/etc/a.html", "etc/a.html.gz"),
        ("x/html", None),
    ],
)
def test_pages_are_told_by_their_names(member: str, name: str | None) -> None:
    assert demo.page_name(member) == name


def test_the_cache_lies_where_the_system_says(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / "puna"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / ".cache" / "puna"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert demo.cache_folder() == tmp_path / "Library" / "Caches" / "puna"


def test_a_package_s_stanza(store: Path, tmp_path: Path) -> None:
    (store / "a.stanza").write_text(
        "Package: a\nVersion: 1:2~b\nDescription: x: y\n z\nSize: 7\nDepends: b (>= 1), c | d\n"
    )
    assert Apt(tmp_path / "apt").show(["a", "b"]) == {"a": Package("a", "1:2~b", 7, ("b", "c"))}
    assert Apt(tmp_path / "apt2").show([]) == {}


def test_apt_itself(tmp_path: Path, log) -> None:
    """Fetches one small package from the system's sources."""
    try:
        apt = Apt(tmp_path / "apt")
    except PunaError as error:
        pytest.skip(str(error))
    apt.update()
    packages = list(apt.show(["debian-kernel-handbook", "base-files"]).values())
    (tmp_path / "debs").mkdir()
    files = apt.download(packages, tmp_path / "debs", log)
    if not files:
        pytest.skip("needs the network: apt could not fetch a package")
    for deb in files.values():
        assert any(member.name.endswith("/copyright") and content.read() for member, content in files_of(deb))
