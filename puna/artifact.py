"""What an artifact is on disk: its files, sealed by a manifest; and how small files are written.

A manifest holds what made the artifact, the versions and the digest of every file.
"""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def figure(value: float, unit: str = "", low: float | None = None, high: float | None = None, n: int | None = None):
    """One figure of summary.json: a value, its unit, its 95% interval and the number of cases behind it."""
    return {"value": value, "low": low, "high": high, "n": n, "unit": unit}


def work_folder(out: Path) -> Path:
    """Where a stage keeps checkpoints while it makes `out`; gone once the artifact is whole."""
    return out.parent / "work"


def read_manifest(artifact: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
        whole = all((artifact / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None


def write_manifest(artifact: Path, content: dict[str, Any]) -> None:
    """Seal an artifact: the digest of every file, flushed to disk before the manifest says they are there."""
    files = {}
    for path in sorted(p for p in artifact.rglob("*") if p.is_file()):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        files[path.relative_to(artifact).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    versions = {name: version(name) for name in ("puna", "torch", "numpy", "tokenizers")}
    content = content | {
        "versions": versions | {"python": platform.python_version()},
        "files": files,
        "digest": digest_of({name: file["sha256"] for name, file in files.items()}),
    }
    write_text(artifact / "manifest.json", json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, meets the old text or the new and nothing between."""
    aside = path.with_name(f".{path.name}.aside")
    with aside.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    aside.replace(path)


def digest_of(value: Any) -> str:
    """The SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
