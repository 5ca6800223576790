"""Real web pages to raise a small Llama on, without an account: documentation, with its navigation and its menus.

Three places are tried, the richest first; whatever was fetched first is kept and found again at once:

1. documentation packages of a Debian or Ubuntu system, fetched with apt. Nothing is installed, no root is needed:
   apt works in a folder of its own, on the sources that the system trusts, and checks their signatures.
2. the archive of Python's documentation, over HTTPS, where there is no apt.
3. the pages that pydoc renders of the installed Python, where there is no network.
"""

import fcntl
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from puna.corpus.apt import SECONDS, Apt, files_of
from puna.errors import PunaError
from puna.log import Log

# Chosen for text per download (about 64 MB for 60 MB of text), for prose, and from Debian's main section only.
# A package that a distribution lacks is left out. Pages that are not in English become `multilingual` in the end.
PACKAGES: dict[str, tuple[str, ...]] = {
    "general": (
        "apache2-doc",
        "cfi-en",
        "debian-faq",
        "developers-reference",
        "exim4-doc-html",
        "git-doc",
        "harden-doc",
        "libreoffice-help-en-us",
        "mh-book",
        "postfix-doc",
        "postgresql-doc",
        "privoxy",
    ),
    "math": ("lp-solve-doc", "python-mpmath-doc", "python-sympy-doc", "r-doc-html"),
    "code": ("abs-guide", "c++-annotations-html", "python3-doc"),
    "multilingual": (
        "aptitude-doc-es",
        "aptitude-doc-fr",
        "aptitude-doc-it",
        "focalinux-html",
        "libreoffice-help-hi",
        "live-manual-html",
        "weechat-doc",
    ),
}
PYTHON_VERSION = "3.14"
PYTHON_ARCHIVE = "https://docs.python.org/{language}{version}/archives/python-{version}-docs-html.tar.bz2"
PYTHON_LANGUAGES = ("", "es/", "fr/")  # "" is English
PYTHON_PROSE = {"faq", "howto", "installing", "tutorial", "using", "whatsnew"}
MATH_MODULES = {"cmath", "decimal", "fractions", "math", "numbers", "numeric", "numpy", "random", "statistics"}
PYDOC_PACKAGES = ("numpy", "torch", "torch.nn", "torch.distributions", "torch.optim", "pyarrow", "pydantic", "rich")
SILENT = {"antigravity", "encodings", "idlelib", "lib2to3", "this", "tkinter", "turtle", "turtledemo"}
"""Modules without text, or that open windows."""
WRITE_PAGES = """
import pkgutil, pydoc, sys

def write(name):
    try:
        pydoc.writedoc(name)
    except BaseException:
        return  # a module for another system, or one that exits when it is imported
    for module in pkgutil.iter_modules(getattr(sys.modules[name], "__path__", ())):
        if not module.name.startswith(("_", "test")) and name.count(".") < 1:
            write(f"{name}.{module.name}")

for name in sys.argv[1:]:
    write(name)
"""

PAGE_NAME = re.compile(r"(.+)\.x?html?(\.[a-z]{2}(?:-[a-z]{2})?(?:\.[\w-]+)?)?")

Record = dict[str, str]
"""What was fetched: `name` and `version` of a package, the `part` it serves, its `licence` or the file of it."""


@dataclass(frozen=True)
class Demo:
    folder: Path
    """Holds PART/PACKAGE/...: gzip-compressed HTML."""
    kind: str
    """Where it is from: `debian packages`, `python documentation archive` or `pydoc pages`."""
    packages: list[Record]


def cache_folder() -> Path:
    """The user's cache folder for puna."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "puna"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puna"


def demo_digest() -> str:
    """Digest of what the demo asks for. What it got (the versions) is kept for good, and is in the artifact."""
    wanted = [PACKAGES, PYTHON_VERSION, PYTHON_LANGUAGES]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]


def fetch(cache: Path, log: Log) -> Demo:
    """The demo pages, from the cache if they are there; the last resort needs nothing but Python."""
    final = cache / f"demo-{demo_digest()}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs at once, one fetches
        if not final.exists():
            aside = final.with_suffix(".partial")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            _fetch_into(aside, cache, log)
            aside.rename(final)
    record = json.loads((final / "demo.json").read_text(encoding="utf-8"))
    return Demo(final / "pages", record["kind"], record["packages"])


def _fetch_into(folder: Path, cache: Path, log: Log) -> None:
    sources: list[tuple[str, Callable[[], list[Record]]]] = [
        ("debian packages", lambda: debian_packages(folder, cache, log)),
        ("python documentation archive", lambda: python_archive(folder, log)),
        ("pydoc pages", lambda: pydoc_pages(folder)),
    ]
    reasons = []
    for kind, source in sources:
        try:
            packages = source()
            break
        except (PunaError, OSError, EOFError, subprocess.SubprocessError, tarfile.TarError) as error:
            reasons.append(f"{kind}: {error}")
            log.message(f"no {kind}: {error}")
            shutil.rmtree(folder / "pages", ignore_errors=True)
    else:
        raise PunaError("no demo corpus; set corpus.source to a folder of your own pages. " + "; ".join(reasons))
    log.message(f"the demo corpus is from {kind}; it is kept in {cache}, remove that to fetch it anew")
    text = json.dumps({"kind": kind, "packages": packages}, indent=1, sort_keys=True)
    (folder / "demo.json").write_text(text, encoding="utf-8")


# -- 1. packages -------------------------------------------------------------------------------------------------------


def debian_packages(folder: Path, cache: Path, log: Log) -> list[Record]:
    """Fetch and unpack the packages; a download that was cut short is taken up again from `cache`."""
    apt = Apt(folder / "apt")
    apt.update()
    parts = resolve(apt, log)
    packages = list(apt.show(parts).values())
    log.message(f"{len(packages)} packages, {sum(package.size for package in packages) / 1e6:.0f} MB")
    downloads = cache / "debs"
    downloads.mkdir(exist_ok=True)
    files = apt.download(packages, downloads, log)
    shutil.rmtree(folder / "apt")
    for package in packages:
        if package.name not in files:
            log.message(f"{package.name} could not be fetched; going on without it")
    if not files:
        raise PunaError("apt fetched none of the packages")
    with ThreadPoolExecutor(2) as pool, log.progress("unpacking", len(files)) as bar:
        for _ in pool.map(lambda name: _unpack(files[name], name, parts[name], folder), files):
            bar.advance()
    shutil.rmtree(downloads)
    return [
        {"name": p.name, "version": p.version, "part": parts[p.name], "licence": f"licences/{p.name}.txt"}
        for p in packages
        if p.name in files
    ]


def resolve(apt: Apt, log: Log) -> dict[str, str]:
    """Name -> part of what there is of PACKAGES. python3-doc and postgresql-doc only name the current version."""
    wanted = {name: part for part, names in PACKAGES.items() for name in names}
    known = apt.show(wanted)
    if not known:
        raise PunaError("apt knows none of the packages; are its sources in order?")
    if missing := sorted(wanted.keys() - known.keys()):
        log.message(f"this system has no {', '.join(missing)}; going on without")
    parts = {}
    for name in sorted(known):
        stem = name.removesuffix("-doc")
        heirs = [other for other in known[name].depends if other.startswith(stem) and "-doc" in other]
        for package in heirs or [name]:
            parts[package] = wanted[name]
    return parts


def _unpack(deb: Path, name: str, part: str, folder: Path) -> None:
    """Take the pages and the licence out of a package."""
    licence = folder / "licences" / f"{name}.txt"
    licence.parent.mkdir(parents=True, exist_ok=True)
    for member, content in files_of(deb):
        if member.name.endswith(f"/{name}/copyright"):
            licence.write_bytes(content.read())
        elif page := page_name(member.name):
            _write_page(folder / "pages" / part / name / page, content, member.mtime)


def page_name(member: str) -> str | None:
    """Where to write a file of an archive if it is a page; `index.html.fr.utf8` (Apache's way) is one."""
    path = PurePosixPath(member)
    found = PAGE_NAME.fullmatch(path.name.removesuffix(".gz"))
    if not found or ".." in path.parts:
        return None
    parents = [part for part in path.parts[:-1] if part not in ("/", "usr", "share", "doc")]
    return "/".join([*parents, f"{found[1]}{found[2] or ''}.html.gz"])


def _write_page(path: Path, content: IO[bytes], mtime: float) -> None:
    data = content.read()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if data[:2] == b"\x1f\x8b" else gzip.compress(data, 3, mtime=0))
    os.utime(path, (mtime, mtime))  # the date of the text


# -- 2. Python's archive -----------------------------------------------------------------------------------------------


def python_archive(folder: Path, log: Log) -> list[Record]:
    """Python's documentation in English, and in other languages where they can be had."""
    records = []
    for language in PYTHON_LANGUAGES:
        name = f"python-docs-{language.strip('/') or 'en'}"
        url = PYTHON_ARCHIVE.format(language=language, version=PYTHON_VERSION)
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as response:
                data = response.read()
        except (OSError, HTTPException) as error:
            if not records:  # no English, no use
                raise PunaError(f"{url}: {error}") from error
            log.message(f"{url}: {error}; going on without it")
            continue
        with tarfile.open(fileobj=BytesIO(data), mode="r:bz2") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content and (page := page_name(member.name)):
                    part = "multilingual" if language else python_part(page)
                    _write_page(folder / "pages" / part / name / page, content, member.mtime)
        part = "multilingual" if language else "code"
        records.append({"name": name, "version": PYTHON_VERSION, "part": part, "licence": "PSF-2.0"})
    return records


def python_part(name: str) -> str:
    """The part that a page of Python's documentation serves best."""
    parents, stem = PurePosixPath(name).parts[:-1], PurePosixPath(name).name.partition(".")[0]
    if stem in MATH_MODULES:
        return "math"
    return "general" if PYTHON_PROSE & set(parents) else "code"


# -- 3. pydoc ----------------------------------------------------------------------------------------------------------


def pydoc_pages(folder: Path) -> list[Record]:
    """Pages of the standard library and of what puna runs on, rendered by a Python of its own."""
    library = sorted(name for name in sys.stdlib_module_names - SILENT if name[0] != "_")
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-W", "ignore", "-c", WRITE_PAGES, *library, *PYDOC_PACKAGES]
        subprocess.run(command, cwd=work, timeout=300, check=False, capture_output=True)
        for path in sorted(Path(work).glob("*.html")):
            part = "math" if path.name.split(".")[0] in MATH_MODULES else "code"
            with path.open("rb") as content:
                _write_page(folder / "pages" / part / "pydoc" / f"{path.name}.gz", content, 0)
    if not (folder / "pages").exists():
        raise PunaError("pydoc wrote no page")
    return [{"name": "pydoc", "version": platform.python_version(), "part": "code", "licence": "PSF-2.0"}]
