"""A checkpoint of a model in parts becomes a model directory, without a GPU and whatever its size.

The weights go one by one into files that are mapped into memory, and from there into safetensors.
"""

import shutil
from pathlib import Path

import torch

from puna.errors import PunaError
from puna.model.licence import carry_licences
from puna.run import BY_NAME, Run
from puna.text.tokenizer import Tokenizer
from puna.train.save import save_model

BASE_MODELS = ("pretrain", "extend")
"""The stages whose models do not chat."""


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint of a training, or looks like one: a folder or file step-N."""
    return (path / ".metadata").is_file() or (path.name.startswith("step-") and not (path / "config.json").is_file())


def unpack(path: Path, out: Path, dtype: torch.dtype, tokenizer: Path | None, chat: bool) -> Path:
    """Write the checkpoint `path` to `out` as a Hugging Face directory, and return the folder of the run it belongs to
    (its own folder, where that is not in a run).

    The tokenizer is the run's, unless a directory with another is named; then `chat` says whether the model chats.
    PunaError for a damaged checkpoint, a folder that is none, and one whose tokenizer is not to be found.
    """
    from puna.parallel.checkpoint import check_parts, config_of_parts, load_parts

    if path.is_file():
        raise PunaError(
            f"{path} does not tell the model's shape: it is of a training in which each process holds it whole"
        )
    check_parts(path)
    run, stage = origin(path)
    inputs = [tokenizer] if tokenizer else []
    if stage:
        job = Run.open(run)
        inputs += [run / name for name in job.needs(BY_NAME[stage]).values() if (run / name).is_dir()]
        tokenizer, chat = tokenizer or run / "tokenizer", chat or stage not in BASE_MODELS
    if tokenizer is None:
        raise PunaError(f"{path} lies in no run, whose tokenizer would be taken; name one with --tokenizer")
    tokens = Tokenizer.load(tokenizer)
    if (vocab_size := config_of_parts(path).vocab_size) != tokens.vocab_size:
        raise PunaError(
            f"the tokenizer in {tokenizer} has {tokens.vocab_size:,} entries, the model of {path} "
            f"{vocab_size:,}; name the right one with --tokenizer"
        )
    save_model(load_parts(path, out / "weights", dtype), tokens, out, dtype, chat)
    shutil.rmtree(out / "weights")
    carry_licences(inputs, out)
    return run


def origin(path: Path) -> tuple[Path, str | None]:
    """The run in which a checkpoint lies, and the stage it is of (RUN/.partial/STAGE-FINGERPRINT/work/...)."""
    for folder in path.resolve().parents:
        stage = folder.name.rpartition("-")[0]
        if folder.parent.name == ".partial" and stage in BY_NAME:
            return folder.parent.parent, stage
    return path.parent, None
