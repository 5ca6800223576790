"""Licence files go along, and the card says what they ask."""

from pathlib import Path

import pytest

from puna.errors import PunaError
from puna.model.licence import card_name, carry_licences, licence_files, llama_release, write_card

METAS = " LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n\n Llama 3.1 Version Release Date: July 23, 2024\n"


def folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("_md", ".md")).write_text(text)
    return path


def test_files_are_carried_by_their_names(tmp_path: Path):
    source = folder(tmp_path / "a", LICENSE=METAS, USE_POLICY_md="be good", Notice="N", config_json="{}", README_md="x")
    out = folder(tmp_path / "out")
    carry_licences([source], out)
    assert sorted(path.name for path in out.iterdir()) == ["LICENSE", "Notice", "USE_POLICY.md"]
    assert (out / "LICENSE").read_text() == METAS


def test_two_licences_of_one_name_both_stay(tmp_path: Path):
    one, two = folder(tmp_path / "one", LICENSE="first"), folder(tmp_path / "two", LICENSE="second")
    out = folder(tmp_path / "out")
    carry_licences([one, two, one, two], out)
    assert {path.name: path.read_text() for path in licence_files(out)} == {"LICENSE": "first", "LICENSE.2": "second"}


def test_a_model_of_metas_says_what_its_licence_asks(tmp_path: Path):
    out = folder(tmp_path / "out", LICENSE=METAS, USE_POLICY_md="be good")
    assert llama_release(out) == "3.1"
    write_card(out, "my-model", "", "About it.\n")
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: llama3.1\n")
    assert "# Llama-my-model\n\nAbout it.\n" in card
    notice = (
        "Llama 3.1 is licensed under the Llama 3.1 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
    assert (out / "NOTICE").read_text() == notice + "\n"
    for words in ("Built with Llama", "700 million", "`LICENSE`, `NOTICE`, `USE_POLICY.md`", 'with "Llama"', notice):
        assert words in card


def test_metas_real_licence_is_known(tmp_path: Path, shared_data):
    text = shared_data("tokenizer/LICENSE.llama3_1").read_text()
    assert llama_release(folder(tmp_path / "out", LICENSE=text)) == "3.1"
    assert llama_release(folder(tmp_path / "none", LICENSE="Apache License, Version 2.0")) is None


def test_the_name_begins_with_llama_where_it_must(tmp_path: Path):
    metas, own = folder(tmp_path / "metas", LICENSE=METAS), folder(tmp_path / "own")
    names = [card_name(place, name) for place in (metas, own) for name in ("tuned", "llama-tuned")]
    assert names == ["Llama-tuned", "llama-tuned", "tuned", "llama-tuned"]


def test_a_model_raised_from_nothing_carries_its_makers_licence(tmp_path: Path):
    def card(name: str, licence: str) -> tuple[str, Path]:
        out = folder(tmp_path / name)
        write_card(out, name, licence, "")
        return (out / "README.md").read_text(), out

    assert "license: apache-2.0\n" in card("named", "Apache-2.0")[0]
    assert "license: unknown\n" in card("silent", "")[0]
    (tmp_path / "terms.txt").write_text("Do as you like.")
    text, out = card("written", str(tmp_path / "terms.txt"))
    assert "license: other\n" in text
    assert (out / "LICENSE").read_text() == "Do as you like."
    with pytest.raises(PunaError, match=r"legal/terms.txt': no such file"):
        card("lost", "legal/terms.txt")
