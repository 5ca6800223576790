"""The recipe: every knob of a run, typed, validated and explained in one place.

A recipe file is TOML and holds only what differs from the defaults here; `key.path=value` on the command line
overrides it. There is no inheritance between recipes and no second place for a default. A default that comes
from the paper (arXiv 2407.21783) names its section; every other default is ours.
"""

from puna.recipe.chats import Chats
from puna.recipe.corpus import Corpus, Heuristics, PersonalData, Tokenizer
from puna.recipe.extend import Extend
from puna.recipe.posttrain import Dpo, Evals, Posttrain, Reward, Sft, Synthesize
from puna.recipe.recipe import Recipe, apply_override, knob_names, load_recipe, nearest_knob, parse_recipe
from puna.recipe.scaling import Scaling
from puna.recipe.training import Model, Pretrain, Training

__all__ = [
    "Chats",
    "Corpus",
    "Dpo",
    "Evals",
    "Extend",
    "Heuristics",
    "Model",
    "PersonalData",
    "Posttrain",
    "Pretrain",
    "Recipe",
    "Reward",
    "Scaling",
    "Sft",
    "Synthesize",
    "Tokenizer",
    "Training",
    "apply_override",
    "knob_names",
    "load_recipe",
    "nearest_knob",
    "parse_recipe",
]
