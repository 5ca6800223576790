"""Licences travel with models: whatever is made from a licensed model carries its files.

The files are found by their names beside the weights (LICENSE, NOTICE, USE_POLICY), as Meta and others publish them.
Stages copy them from their inputs to their artifact, exports to what they write, with a model card. Of Meta's
licence the card says what it asks of whoever passes the model on: the agreement and a notice in every copy, "Built
with Llama" shown, a name that begins with Llama, and a licence of its own above 700 million monthly users.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from puna.errors import PunaError
from puna.recipe.endpoint import Endpoint

NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
"""How the files' names begin, in any case."""


def licence_files(directory: Path) -> list[Path]:
    """The licence files that lie in a directory, by name."""
    return sorted(path for path in directory.iterdir() if path.is_file() and path.name.upper().startswith(NAMES))


def carry_licences(sources: Iterable[Path], out: Path) -> None:
    """Copy the licence files of every source to `out`; two different ones of a name both stay, as NAME and NAME.2."""
    for source in sources:
        for path in licence_files(source):
            content = path.read_bytes()
            target, count = out / path.name, 1
            while target.exists() and target.read_bytes() != content:
                count += 1
                target = out / f"{path.name}.{count}"
            target.write_bytes(content)


def llama_release(directory: Path) -> str | None:
    """The release of Llama whose community licence lies in a directory ("3.1"), None where there is none."""
    for path in licence_files(directory):
        found = re.search(r"LLAMA (\d(?:\.\d)?) COMMUNITY LICENSE", path.read_text("utf-8", "replace")[:2000].upper())
        if found:
            return found[1]
    return None


def note_llama(out: Path, model: str, llama: str | None = None) -> str | None:
    """Write the notice that goes with what a Llama wrote, and with models that learn from it; its release, or None.

    Section 1.b of Llama 3.1's licence asks it of whoever trains a model with outputs of Llama. `model` is the model's
    name, as "Llama-3.1-70B"; `llama` its release where the name does not tell it, or "" for one that is no Llama. The
    licence itself is for the user to put beside it: an endpoint does not give it.
    """
    named = re.search(r"(?<![a-z])llama[-_ ]?v?(\d(?:\.\d)?)(?![\db])", model.lower()) if llama is None else None
    release = llama_release(out) or llama or (named[1] if named else None)
    if release and not llama_release(out):
        notice = _notice(release)
        learned = (
            f"Data here were written or judged by Llama {release}; its licence holds for models that learn from them."
        )
        (out / "NOTICE").write_text(f"{notice}\n{learned}\n", encoding="utf-8")
    return release


def carry_terms(model: Endpoint, out: Path) -> str | None:
    """Let the licence of a model that wrote or judged data go with them: the files of its directory, or the notice of
    a Llama. Its release, None where it is no Llama."""
    if Path(model.url).is_dir():
        carry_licences([Path(model.url)], out)
    return note_llama(out, model.model, model.llama)


def card_name(directory: Path, name: str) -> str:
    """The name that a model goes by: where it descends from Llama, one that begins with Llama."""
    return f"Llama-{name}" if llama_release(directory) and not name.lower().startswith("llama") else name


def write_card(out: Path, name: str, licence: str, about: str) -> None:
    """Write README.md, and the notice that Meta's licence wants in every copy, beside a model's licence files.

    `licence` is the maker's own: an identifier ("apache-2.0"), the path of a text that is copied, or empty. `about` is
    what the card says of the model itself.
    """
    release = llama_release(out)
    if release:
        terms = _llama_terms(out, release)
        key = f"llama{release}"
        if licence:
            terms += f"\nWhat its maker added to Llama is licensed by: {licence}\n"
    elif licence:
        key, terms = _own_terms(out, licence)
    elif files := licence_files(out):
        key, terms = "other", f"See {', '.join(path.name for path in files)}.\n"
    else:
        key, terms = "unknown", "Its maker has not said under what licence it may be used.\n"
    front = f"---\nlicense: {key}\npipeline_tag: text-generation\n---\n"
    text = f"{front}\n# {card_name(out, name)}\n\n{about}\n## Licence\n\n{terms}"
    (out / "README.md").write_text(text, encoding="utf-8")


def _llama_terms(out: Path, release: str) -> str:
    notice = _notice(release)
    if not any(path.name.upper().startswith("NOTICE") for path in licence_files(out)):
        (out / "NOTICE").write_text(notice + "\n", encoding="utf-8")
    files = ", ".join(f"`{path.name}`" for path in licence_files(out))
    return f"""**Built with Llama.** This model descends from Meta's Llama {release}, or learned from what that
wrote; its licence holds for every copy: {files}.

{notice}

Whoever passes this model, or a product with it, on to others

- gives them a copy of the licence and keeps the notice;
- shows "Built with Llama" on a website, user interface, about page or in the documentation that belongs to it;
- begins the name of any model made from it, or from what it wrote, with "Llama";
- keeps to Meta's acceptable use policy;
- needs a licence of Meta's own if the products of its company had more than 700 million monthly users when
  Llama {release} was released.
"""


def _notice(release: str) -> str:
    return (
        f"Llama {release} is licensed under the Llama {release} Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved."
    )


def _own_terms(out: Path, licence: str) -> tuple[str, str]:
    if not Path(licence).is_file():
        if "/" in licence:
            raise PunaError(f"license = {licence!r}: no such file; give an identifier like apache-2.0, or a file")
        return licence.lower(), f"{licence}\n"
    (out / "LICENSE").write_bytes(Path(licence).read_bytes())
    return "other", "See `LICENSE`.\n"
