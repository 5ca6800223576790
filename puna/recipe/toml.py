"""A recipe as the text that it can be read from again."""

import json
import re
from typing import Any


def to_toml(data: dict[str, Any], prefix: str = "") -> str:
    """TOML of a recipe: scalars, lists of scalars and tables are all it holds."""
    scalars = {k: v for k, v in data.items() if not isinstance(v, dict)}
    lines = [f"{_toml_key(k)} = {_toml_value(v)}" for k, v in scalars.items()]
    for key, table in data.items():
        if isinstance(table, dict):
            key = _toml_key(key)
            lines += ["", f"[{prefix}{key}]", to_toml(table, f"{prefix}{key}.").rstrip()]
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one escape that JSON leaves out
