"""The model that a run begins with, where the recipe names one (`model.start`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.errors import PunaError

if TYPE_CHECKING:  # `puna status` asks for a digest, and can do without torch
    from puna.model.llama import Llama, LlamaConfig


def start_folder(start: str) -> Path:
    """The named directory; PunaError where it is no model."""
    folder = Path(start)
    if not any((folder / name).is_file() for name in ("config.json", "params.json")):
        raise PunaError(
            f"model.start = {start!r} is not a model directory: it has neither config.json nor params.json; a model of "
            f"the Hugging Face hub is fetched by `hf download {start} --local-dir FOLDER`"
        )
    return folder


def load_start(start: str) -> "Llama":
    """The model of a directory in Hugging Face's form, or in Meta's (params.json, consolidated.*.pth)."""
    from puna.model.weights import load_hf
    from puna.model.weights_meta import load_meta

    folder = start_folder(start)
    return load_meta(folder) if (folder / "params.json").is_file() else load_hf(folder)


def read_start_config(start: str) -> "LlamaConfig":
    """Its sizes alone."""
    from puna.model.weights import read_config
    from puna.model.weights_meta import read_meta_config

    folder = start_folder(start)
    return read_meta_config(folder) if (folder / "params.json").is_file() else read_config(folder)


def source_digest(recipe: Any) -> list[list[Any]] | None:
    """What the named directory holds, by names, sizes and times, for its weights may take minutes to read; None where
    the run begins with nothing."""
    if recipe.model.start is None:
        return None
    paths = sorted(path for path in start_folder(recipe.model.start).iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
