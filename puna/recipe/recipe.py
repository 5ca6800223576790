"""A whole recipe: read from TOML, changed by overrides, its errors told in words."""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from puna.errors import PunaError
from puna.recipe.chats import Chats
from puna.recipe.corpus import Corpus, Tokenizer
from puna.recipe.extend import Extend
from puna.recipe.knobs import Knobs
from puna.recipe.posttrain import Dpo, Evals, Posttrain, Reward, Sft, Synthesize
from puna.recipe.scaling import Scaling
from puna.recipe.training import Model, Pretrain


class Recipe(Knobs):
    name: str
    """The run lives in runs/NAME."""
    seed: int = 0
    license: str = ""
    """What the card of an exported model says of your own rights: an identifier such as apache-2.0, or the path of a
    text. It is no cause of any stage. Models made from Meta's weights stay under Meta's licence too."""
    wandb: str = ""
    """A project of Weights & Biases that gets each step's figures too (`pip install "puna[wandb]"`); no cause of any
    stage either."""
    corpus: Corpus = Corpus()  # pyright: ignore[reportCallIssue]
    tokenizer: Tokenizer = Tokenizer()  # pyright: ignore[reportCallIssue]
    model: Model = Model()
    pretrain: Pretrain = Pretrain()  # pyright: ignore[reportCallIssue]
    extend: Extend = Extend()  # pyright: ignore[reportCallIssue]
    scaling: Scaling = Scaling()  # pyright: ignore[reportCallIssue]
    synthesize: Synthesize = Synthesize()  # pyright: ignore[reportCallIssue]
    chats: Chats = Chats()  # pyright: ignore[reportCallIssue]
    sft: Sft = Sft()  # pyright: ignore[reportCallIssue]
    reward: Reward = Reward()  # pyright: ignore[reportCallIssue]
    dpo: Dpo = Dpo()  # pyright: ignore[reportCallIssue]
    posttrain: Posttrain = Posttrain()  # pyright: ignore[reportCallIssue]
    evals: Evals = Evals()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def something_to_learn_from(self) -> "Recipe":
        if not self.pretrain.tokens and not self.model.start:
            raise ValueError("pretrain.tokens = 0: a model that begins with nothing has to learn; or give model.start")
        if self.chats.only and not self.chats.sources:
            raise ValueError("chats.only: there are no chats; give chats.sources")
        return self


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a TOML recipe and apply `key.path=value` overrides; PunaError names the key, the value, the mend."""
    path = Path(path)
    if not path.is_file():
        raise PunaError(f"no recipe at {path}; the recipes that come with puna are in recipes/")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PunaError(f"{path} is not valid TOML: {error}") from error
    data.setdefault("name", path.stem)
    for override in overrides:
        apply_override(data, override)
    return parse_recipe(data, str(path))


def parse_recipe(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [explain(item) for item in error.errors()]
        raise PunaError(f"{where} cannot be used:\n" + "\n".join(f"  {line}" for line in lines)) from error


def knob_names(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every knob by its dotted name."""
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += knob_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one knob of a recipe that is not validated yet, in place."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise PunaError(f"{override!r} is neither a stage nor an override; write key.path=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise PunaError(f"{override!r}: {parent} is a value, it has no knobs of its own")
    data[last] = parsed


def explain(item: Any) -> str:
    """One of pydantic's errors in words: the key, the value, what is wrong."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: there is no such knob; did you mean {nearest_knob(key)}?"
    if item["type"] == "missing":
        return f"{key}: is needed"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {json.dumps(item['input'], default=str)}: {message[0].lower()}{message[1:]}"


def nearest_knob(key: str) -> str:
    """The known knob whose name is nearest to `key`: in the same section if that has one like it."""
    section, _, last = key.rpartition(".")
    known = knob_names()
    beside = [name for name in (*known, *Recipe.model_fields) if name.rpartition(".")[0] == section]
    for names in (beside, known):
        by_last: dict[str, str] = {}
        for name in names:
            by_last.setdefault(name.rpartition(".")[2], name)
        starts = [last] if last in by_last else [n for n in by_last if n.startswith(last) or last.startswith(n)]
        words = [name for name in by_last if set(last.split("_")) & set(name.split("_"))]
        close = starts or difflib.get_close_matches(last, list(by_last), 1, 0.6) or words
        if close:
            return by_last[close[0]]
    return difflib.get_close_matches(key, [*known, *Recipe.model_fields], 1, 0.0)[0]
