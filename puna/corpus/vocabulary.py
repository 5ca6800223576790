"""The tokenizer stage: learns a vocabulary from the corpus, or takes an existing one (section 3.2)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from puna.errors import PunaError
from puna.log import Log
from puna.model.start import start_folder
from puna.recipe import Recipe
from puna.run import figure
from puna.text.tokenizer import Tokenizer
from puna.train.batches import rng


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Corpus -> a directory with tokenizer.json, tokenizer.model and their settings."""
    knobs = recipe.tokenizer
    if recipe.model.start:
        tokenizer = Tokenizer.load(start_folder(recipe.model.start))
    elif knobs.path:
        tokenizer = Tokenizer.load(knobs.path)
    else:
        log.message(f"learning {knobs.vocab_size:,} tokens from up to {knobs.sample_megabytes:g} MB of text")
        tokenizer = Tokenizer.train(sample(recipe, inputs["corpus"]), knobs.vocab_size, knobs.special_tokens)
    tokenizer.save(out)
    return {"tokenizer.vocabulary": figure(tokenizer.vocab_size, "tokens")}


def sample(recipe: Recipe, corpus: Path) -> Iterator[str]:
    """Documents of each part, in a random order, up to the part's share of the sample."""
    paths = {path.stem: path for path in sorted((corpus / "documents").glob("*.parquet"))}
    for part, share in recipe.pretrain.mix.items():
        if share and part not in paths:
            raise PunaError(f"pretrain.mix names {part!r}, but the corpus has the parts {', '.join(paths)}")
        room = share * recipe.tokenizer.sample_megabytes * 1e6
        texts = pq.read_table(paths[part], columns=["text"])["text"] if share else []
        for i in rng(recipe.seed, "vocabulary", part).permutation(len(texts)):
            if room <= 0:
                break
            text = texts[int(i)].as_py()
            room -= len(text.encode())
            yield text
