"""Recipes: what is wrong with one is said by key, value and mend."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import PunaError
from puna.recipe import Recipe, knob_names, load_recipe, parse_recipe
from puna.run import to_toml


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(
        "seed = 7\n[pretrain]\ntokens = 5000\n[pretrain.mix]\ncode = 0.25\ngeneral = 0.75\n[sft]\nepochs = 3\n"
    )
    return path


def test_a_file_holds_what_differs_from_the_defaults(recipe_file: Path):
    recipe = load_recipe(recipe_file)
    assert (recipe.name, recipe.seed, recipe.pretrain.tokens, recipe.sft.epochs) == ("small", 7, 5000, 3)
    assert recipe.pretrain.mix == {"code": 0.25, "general": 0.75}
    assert recipe.pretrain.batch_rows == Recipe(name="x").pretrain.batch_rows


@pytest.mark.parametrize(
    ("override", "section", "knob", "value"),
    [
        ("pretrain.peak_lr=1e-3", "pretrain", "peak_lr", 1e-3),
        ("pretrain.tokens=1_000_000", "pretrain", "tokens", 1_000_000),
        ("pretrain.schedule=linear", "pretrain", "schedule", "linear"),
        ("sft.compile='off'", "sft", "compile", "off"),
        ("corpus.source=/data/my pages", "corpus", "source", "/data/my pages"),
        ("corpus.source=a=b", "corpus", "source", "a=b"),
        ('corpus.languages=["en", "de"]', "corpus", "languages", ["en", "de"]),
        ("pretrain.mix={math = 1}", "pretrain", "mix", {"math": 1.0}),
        ("dpo.processes=2", "dpo", "processes", 2),
    ],
)
def test_overrides(recipe_file: Path, override: str, section: str, knob: str, value: Any):
    assert getattr(getattr(load_recipe(recipe_file, [override]), section), knob) == value


def test_the_last_override_wins_and_the_rest_of_the_table_stays(recipe_file: Path):
    recipe = load_recipe(recipe_file, ["sft.epochs=4", "sft.epochs=5", "name=other", "pretrain.mix.code=0.25"])
    assert (recipe.sft.epochs, recipe.name, recipe.pretrain.tokens) == (5, "other", 5000)
    assert recipe.pretrain.mix == {"code": 0.25, "general": 0.75}


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("pretrain.warmup", "pretrain.warmup_steps"),
        ("sft.warmup", "sft.warmup_steps"),
        ("dpo.lr", "dpo.peak_lr"),
        ("pretrain.token", "pretrain.tokens"),
        ("model.dims", "model.dim"),
        ("warmup_steps", "pretrain.warmup_steps"),
        ("evals.beta", "dpo.beta"),
        ("pretrian", "pretrain"),
        ("sed", "seed"),
        ("corpus.min_word", "corpus.min_words"),
    ],
)
def test_a_typo_names_the_nearest_knob(recipe_file: Path, typo: str, nearest: str):
    with pytest.raises(PunaError) as error:
        load_recipe(recipe_file, [f"{typo}=1"])
    message = f"{typo}: there is no such knob; did you mean {nearest}?"
    assert str(error.value) == f"{recipe_file} cannot be used:\n  {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.tokens=1.5", 'pretrain.tokens = 1.5: input should be a valid integer'),
        ("pretrain.tokens=many", 'pretrain.tokens = "many": input should be a valid integer'),
        ("pretrain.tokens=-1", "pretrain.tokens = -1: input should be greater than or equal to 0"),
        ("sft.precision=fp16", "sft.precision = \"fp16\": input should be 'auto', 'fp32' or 'bf16'"),
        ("corpus.languages=en", 'corpus.languages = "en": input should be a valid list'),
        ("pretrain=3", "pretrain = 3: input should be a valid dictionary"),
        ("pretrain.processes=0", "= 0: input should be greater than 0"),
        ("pretrain.batch_rows=7 pretrain.micro_rows=2", "batch_rows=7 is not a multiple of micro_rows=2"),
        ("pretrain.mix.code=0.5", "must be shares that sum to 1, not 1.25"),
        ("pretrain.mix={code=-0.5,math=1.5}", "must be shares that sum to 1"),
        ("pretrain.tokens.much=3", "'pretrain.tokens.much=3': tokens is a value, it has no knobs of its own"),
        ("pretrain.tokens", "'pretrain.tokens' is neither a stage nor an override; write key.path=value"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(recipe_file: Path, override: str, message: str):
    with pytest.raises(PunaError) as error:
        load_recipe(recipe_file, override.split())
    assert message in str(error.value)


def test_all_errors_are_told_at_once(recipe_file: Path):
    with pytest.raises(PunaError) as error:
        load_recipe(recipe_file, ["sft.epochs=0", "dpo.beta=-1", "color=red"])
    assert len(str(error.value).splitlines()) == 4


def test_files_that_are_no_recipe(tmp_path: Path):
    with pytest.raises(PunaError, match=r"no recipe at .*missing\.toml"):
        load_recipe(tmp_path / "missing.toml")
    for content in (b"seed = ", b"seed = 1\nseed = 2\n", b'name = "\xff"\n'):
        (tmp_path / "broken.toml").write_bytes(content)
        with pytest.raises(PunaError, match=r"broken\.toml is not valid TOML"):
            load_recipe(tmp_path / "broken.toml")


def test_a_recipe_cannot_be_changed():
    recipe = Recipe(name="x")
    with pytest.raises(ValueError, match="frozen"):
        recipe.pretrain.tokens = 3


def test_every_knob_has_a_name():
    names = knob_names()
    assert len(names) == len(set(names)) > 100
    assert {"seed", "pretrain.warmup_steps", "model.kv_heads", "dpo.pairs_per_problem"} <= set(names)


# -- TOML --


def test_the_default_recipe_survives_toml(tmp_path: Path):
    recipe = Recipe(name="x")
    (tmp_path / "again.toml").write_text(to_toml(recipe.model_dump(mode="json", exclude_none=True)))
    assert load_recipe(tmp_path / "again.toml") == recipe


text = st.text(st.characters(exclude_categories=["Cs"]))


@given(name=text, source=text, parts=st.lists(text, min_size=1, unique=True), lr=st.floats(1e-12, 1e12))
def test_any_recipe_survives_toml(name: str, source: str, parts: list[str], lr: float):
    mix = {part: 1 / len(parts) for part in parts}
    data = {"name": name, "corpus": {"source": source, "languages": parts}, "pretrain": {"mix": mix, "peak_lr": lr}}
    recipe = parse_recipe(data, "test")
    again = tomllib.loads(to_toml(recipe.model_dump(mode="json", exclude_none=True)))
    assert parse_recipe(again, "test") == recipe
    assert json.dumps(recipe.model_dump(mode="json")) == json.dumps(parse_recipe(again, "test").model_dump(mode="json"))
