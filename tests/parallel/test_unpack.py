"""Exports of distributed checkpoints: the bytes are those of the model that the run ended with."""

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from puna.cli import app
from puna.errors import PunaError
from puna.export import export_model
from puna.log import Log
from puna.model.llama import Llama, LlamaConfig
from puna.parallel.parts import Parts
from puna.recipe import Training
from puna.recipe.layout import Layout
from puna.text.tokenizer import Tokenizer
from puna.train.launch import World, launch
from puna.train.losses import NextToken
from puna.train.optimizer import make_optimizer
from puna.train.save import save_model

LAYOUT = Layout(tp=2, pp=2)


def save_checkpoint(world: World, model: Llama, folder: Path) -> None:
    """As the loop would, after no step at all."""
    options = Training.model_validate({"seq_len": 16, "batch_rows": 4, "layout": LAYOUT, "precision": "fp32"})
    parts = Parts(model, NextToken(), options, world, compiled=False)
    optimizer = make_optimizer(parts.module, options)
    checkpoints = parts.checkpoints(folder, optimizer, {}, options, Log(folder / "log", "test", quiet=True))
    checkpoints.save(120)
    checkpoints.wait()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a tokenizer, the model that it ended with in pretrain/, and a checkpoint of the same in parts."""
    run = tmp_path_factory.mktemp("made") / "run"
    tokenizer = Tokenizer.train(["the llama's wool is warm and grey; " * 40], vocab_size=290, specials=16)
    tokenizer.save(run / "tokenizer")
    (run / "recipe.toml").write_text('name = "run"\nlicense = "apache-2.0"\n')
    (run / "shards").mkdir()
    (run / "shards" / "NOTICE").write_text("of the text")
    config = LlamaConfig(tokenizer.vocab_size, dim=64, layers=3, heads=4, kv_heads=2, ffn_dim=96)
    model = Llama(config).init_weights(torch.Generator().manual_seed(1))
    save_model(model, tokenizer, run / "pretrain", chat=False)
    launch(save_checkpoint, 4, model, run / ".partial" / "pretrain-0123abcd" / "work")
    return run


def checkpoint(made: Path) -> Path:
    return made / ".partial" / "pretrain-0123abcd" / "work" / "step-000000120"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "NOTICE"}


@pytest.mark.parametrize(("form", "dtype"), [("hf", "bf16"), ("meta", "bf16"), ("gguf", "q8_0")])
def test_the_bytes_are_those_of_the_final_model(made: Path, tmp_path: Path, form: str, dtype: str) -> None:
    exported, wanted = tmp_path / "a" / "out", tmp_path / "b" / "out"
    result = CliRunner().invoke(
        app, ["export", str(checkpoint(made)), str(exported), "--to", form, "--dtype", dtype], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    if form == "gguf":  # rounded once, from fp32
        assert (exported / "out-q8_0.gguf").stat().st_size > 0
    else:
        export_model(made / "pretrain", wanted, form, dtype)
        assert contents(exported) == contents(wanted)
    assert (exported / "NOTICE").read_text() == "of the text"  # what the stage was made from has licences
    assert sorted(path.name for path in exported.parent.iterdir()) == ["out"]


def test_a_checkpoint_of_no_run_takes_a_tokenizer(made: Path, tmp_path: Path) -> None:
    alone = tmp_path / "step-000000120"
    shutil.copytree(checkpoint(made), alone)
    with pytest.raises(PunaError, match="lies in no run, whose tokenizer would be taken; name one with --tokenizer"):
        export_model(alone, tmp_path / "out", "hf", "bf16")
    export_model(alone, tmp_path / "out", "hf", "bf16", tokenizer=made / "pretrain")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        made / "pretrain" / "model.safetensors"
    ).read_bytes()
    Tokenizer.train(["a quick brown fox jumps over the lazy dog; " * 40], vocab_size=280, specials=16).save(
        tmp_path / "other"
    )
    with pytest.raises(PunaError, match=r"has 280 entries, the model of .*step-000000120 290; name the right one"):
        export_model(alone, tmp_path / "again", "hf", "bf16", tokenizer=tmp_path / "other")
    with pytest.raises(PunaError, match="--tokenizer is for a checkpoint"):
        export_model(made / "pretrain", tmp_path / "again", "hf", "bf16", tokenizer=tmp_path / "other")
    assert not list(tmp_path.glob("again*"))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("a byte", r"a damaged checkpoint \(the digest of __0_0.distcp differs\); use the one before it"),
        ("a file", r"a damaged checkpoint \(.*__1_0.distcp"),
        ("the metadata", r"a damaged checkpoint \(.metadata's digest differs\)"),
        ("the state", "a damaged checkpoint"),
        ("foreign", "no checkpoint of puna, which has a state.json; name a folder step-N"),
        ("one file", "each process holds it whole"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(made: Path, tmp_path: Path, harm: str, said: str) -> None:
    path = tmp_path / "step-000000120"
    shutil.copytree(checkpoint(made), path)
    if harm == "a byte":
        data = bytearray((path / "__0_0.distcp").read_bytes())
        data[len(data) // 2] ^= 1
        (path / "__0_0.distcp").write_bytes(data)
    elif harm == "a file":
        (path / "__1_0.distcp").unlink()
    elif harm == "the metadata":
        (path / ".metadata").write_bytes(b"x")
    elif harm == "the state":
        (path / "state.json").write_text("{")
    elif harm == "foreign":
        (path / "state.json").unlink()
    else:
        path = tmp_path / "step-000000007.safetensors"
        path.touch()
    with pytest.raises(PunaError, match=said):
        export_model(path, tmp_path / "out", "hf", "bf16", tokenizer=made / "pretrain")
    assert not list(tmp_path.glob("out*"))
