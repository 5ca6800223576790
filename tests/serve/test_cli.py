"""The command: names, keys, addresses, and a whole server from a model directory."""

from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from puna.cli import app
from puna.errors import PunaError
from puna.infer.engine import Sampling
from puna.serve import cli
from puna.serve.metrics import Metrics
from puna.train.save import save_model
from tests.serve.kit import BYTES, random_engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    save_model(random_engine().model, BYTES, path)
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_addresses_of_this_machine(host: str):
    assert cli.is_local(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_addresses_that_others_reach(host: str, model: Path):
    assert not cli.is_local(host)
    result = CliRunner().invoke(app, ["serve", str(model), "--host", host])
    assert isinstance(result.exception, PunaError)
    assert "give --api-key" in str(result.exception)


def test_keys(tmp_path: Path):
    file = tmp_path / "key"
    file.write_text(" secret\n", encoding="utf-8")
    assert cli.read_key(None, None) is None
    assert cli.read_key(None, file) == "secret"
    for key, path, told in (("a", file, "drop one"), ("", None, "empty"), (None, tmp_path / "none", "no such file")):
        with pytest.raises(PunaError, match=told):
            cli.read_key(key, path)


def test_the_command_serves(model: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: asked.update(options, app=app))
    words = [
        "serve",
        str(model),
        f"other={model}",
        "--port",
        "0",
        "--blocks",
        "8",
        "--rows",
        "4",
        "--tools",
        "calculator",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exception is None, result.output
    assert (asked["host"], asked["port"], asked["timeout_graceful_shutdown"]) == ("127.0.0.1", 0, 300)
    served = asked["app"].app.state.models
    assert list(served) == ["small", "other"]
    assert served["small"].max_len == 8 * 16  # as many tokens as the cache holds
    assert asked["app"].access.local


def test_guessing_ahead_changes_nothing(model: Path):
    prompt = [*range(60), *range(60)]
    outputs = []
    for speculate in ("off", "ngram", str(model)):
        (served,) = cli.load([str(model)], Metrics(), None, "hf", 8, speculate, blocks=64, rows=4)
        outputs.append(served.engine.generate([prompt], Sampling(20, speculate=served.speculate)))
    assert outputs[0] == outputs[1] == outputs[2]
    assert served.speculate == "draft"


@pytest.mark.parametrize("dtype", ["int8", "int8_weights"])
def test_int8_is_served(model: Path, dtype: str):
    (served,) = cli.load([str(model)], Metrics(), dtype, "hf", 8, blocks=64, rows=4)
    names = {type(module).__name__ for module in served.engine.model.modules()}
    assert "Int8Linear" in names
    assert "Linear" not in names
    assert served.engine._runner is not None  # it has run before the first request
    assert len(served.engine.generate([[1, 2]], Sampling(3, ignore_stop=True))[0][0]) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{model}", "--tp", "2"], "--tp 2 does not divide the model's kv_heads = 1"),
        (["{model}", "--pp", "2"], "torchrun --nproc-per-node 2"),
        (["a={model}", "b={model}", "--pp", "2"], "serve one model"),
        (["{model}", "{model}"], "NAME=PATH"),
        (["{model}", "--dtype", "int3"], "--dtype int3"),
        (["{model}", "--profile", "x"], "--profile x"),
        (["nowhere"], "nowhere is neither a run"),
        (["{model}", "--tools", "hammer"], "hammer"),
    ],
)
def test_what_cannot_be_served(model: Path, words: list[str], told: str):
    result = CliRunner().invoke(app, ["serve", *(word.format(model=model) for word in words)])
    assert isinstance(result.exception, PunaError)
    assert told in str(result.exception)


def test_the_licence_beside_a_model_is_found(model: Path):
    assert cli.load([str(model)], Metrics(), None, "hf", 8, blocks=8, rows=4)[0].llama is None
    licence = model / "LICENSE"
    licence.write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", encoding="utf-8")
    try:
        assert cli.load([str(model)], Metrics(), None, "hf", 8, blocks=8, rows=4)[0].llama == "3.1"
    finally:
        licence.unlink()
