"""The tokenizer against Meta's class, `tokenizers` and transformers, and its own promises."""

import base64
import gzip
import json
import lzma
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_models
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from transformers import AutoTokenizer

from puna.errors import PunaError
from puna.text.tokenizer import MAX_PIECE_CHARACTERS, MAX_RUN_CHARACTERS, Tokenizer
from puna.text.tokenizer_files import CHAT_TEMPLATE, merges_from_ranks, special_names, unspell

META_MODEL = Path(str(llama_models.__file__)).parent / "llama3" / "tokenizer.model"
FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"]


@pytest.fixture(scope="session")
def llama3() -> Tokenizer:
    return Tokenizer.load(META_MODEL)


# Llama 3's own vocabulary


def test_llama3_ids_of_metas_tests(llama3: Tokenizer) -> None:
    # llama-models, models/llama3/tests/api/test_tokenizer.py
    ids = [128000, 2028, 374, 264, 1296, 11914, 13, 128001]
    assert llama3.special["<|begin_of_text|>"] == 128000
    assert llama3.encode("This is a test sentence.", bos=True, eos=True) == ids
    assert llama3.decode(ids) == "<|begin_of_text|>This is a test sentence.<|end_of_text|>"


def test_llama3_special_ids(llama3: Tokenizer) -> None:
    assert llama3.vocab_size == 128256
    assert (llama3.bos_id, llama3.eos_id, llama3.pad_id) == (128000, 128001, 128004)
    assert (llama3.start_header_id, llama3.end_header_id) == (128006, 128007)
    assert (llama3.eom_id, llama3.eot_id, llama3.python_tag_id) == (128008, 128009, 128010)
    assert llama3.stop_ids == [128001, 128008, 128009]
    assert llama3.special["<|reserved_special_token_2|>"] == 128005
    assert llama3.special["<|reserved_special_token_247|>"] == 128255


def test_llama3_merges_are_as_many_as_published(llama3: Tokenizer) -> None:
    merges = merges_from_ranks(llama3.ranks)
    assert len(merges) == 280_147  # model.merges of Llama-3.1-8B's tokenizer.json
    assert merges[0] == (b" ", b" ")


def corpus(locate: Callable[[str], Path]) -> Iterator[str]:
    """About 13 MB of English, mathematics, commands and other languages, document by document."""
    for name, limit in [
        ("corpus_en/fairytaleqa_stories.jsonl.gz", 2_000_000),
        ("corpus_en/openstax_textbooks.jsonl.xz", 3_500_000),
        ("corpus_math/stacks_project_tex.jsonl.xz", 2_000_000),
        ("corpus_math/openstax_math_cnxml.jsonl.xz", 2_000_000),
        ("corpus_multi/children_stories_fr_pt_hi.jsonl.gz", 2_000_000),
        ("corpus_multi/thai_wisesight.jsonl.xz", 1_500_000),
        ("corpus_multi/tldr_pages.jsonl.xz", 2_000_000),
    ]:
        path = locate(name)
        size = 0
        with (gzip if path.suffix == ".gz" else lzma).open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                text = document.get("text") or document["cnxml"]
                yield text
                size += len(text.encode())
                if size > limit:
                    break


def test_llama3_against_meta_and_transformers(
    llama3: Tokenizer, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    texts = list(corpus(shared_data))
    assert sum(len(text.encode()) for text in texts) > 10_000_000
    llama3.save(tmp_path)
    meta, theirs = MetaTokenizer(META_MODEL), AutoTokenizer.from_pretrained(tmp_path)
    ids = llama3.encode_batch(texts)
    assert ids == [meta.encode(text, bos=False, eos=False) for text in texts]
    assert ids == theirs(texts, add_special_tokens=False)["input_ids"]
    assert [llama3.decode(row) for row in ids] == texts


# A vocabulary of our own


def test_train_gives_the_size_asked_for_and_every_byte(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 1500
    assert len(tokenizer.ranks) == 1500 - 256
    assert [tokenizer.ranks[bytes([byte])] < 256 for byte in range(256)] == [True] * 256
    assert list(tokenizer.special) == list(special_names(256))


def test_train_is_the_same_in_any_order_and_with_any_threads(texts: list[str], tmp_path: Path) -> None:
    program = (
        "import json, sys; from puna.text.tokenizer import Tokenizer; "
        "Tokenizer.train(json.load(sys.stdin), 1000, 16).save(sys.argv[1])"
    )
    for name, threads, order in (("one", "1", texts), ("four", "4", texts[::-1])):
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)],
            input=json.dumps(order),
            env=environment,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted([*FILES, CHAT_TEMPLATE.name])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "four" / path.name).read_bytes(), path.name


def test_train_says_what_is_too_small(texts: list[str]) -> None:
    with pytest.raises(PunaError, match="vocab_size=300 cannot hold 256 specials"):
        Tokenizer.train(texts, 300)
    with pytest.raises(PunaError, match=r"yield only 25\d: give more text, or lower vocab_size to 27"):
        Tokenizer.train(["aaa"], 1000, specials=16)
    with pytest.raises(PunaError, match="specials=10 is too few"):
        Tokenizer.train(texts, 1000, specials=10)


def test_special_names_fill_up_with_reserved_ones() -> None:
    assert len(special_names(11)) == 11
    assert special_names(12)[-2:] == ["<|python_tag|>", "<|reserved_special_token_3|>"]


def test_ids_equal_those_of_tokenizers_and_transformers(tokenizer: Tokenizer, exported: Path, texts: list[str]) -> None:
    library = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(exported)
    plain = [text for text in texts if "<|" not in text]  # they turn the names of specials into specials
    for text, ids in zip(plain, tokenizer.encode_batch(plain)):
        assert library.encode(text, add_special_tokens=False).ids == ids
        assert theirs(text)["input_ids"] == [tokenizer.bos_id, *ids]
        assert theirs.decode(ids) == tokenizer.decode(ids) == text
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eot_id)
    assert theirs.pad_token_id == tokenizer.pad_id


@given(st.text(alphabet="ab ' \n.1é", max_size=40))
@settings(max_examples=300, deadline=None)
def test_ids_equal_those_of_tokenizers_where_merges_compete(tokenizer: Tokenizer, exported: Path, text: str) -> None:
    library = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


def test_ids_equal_those_of_metas_class_on_our_file(tokenizer: Tokenizer, exported: Path, texts: list[str]) -> None:
    meta = MetaTokenizer(exported / "tokenizer.model")
    for text in texts:
        assert tokenizer.encode(text, bos=True, eos=True) == meta.encode(text, bos=True, eos=True)
    assert (meta.n_words, meta.eot_id, meta.pad_id) == (1500, tokenizer.eot_id, tokenizer.pad_id)


@pytest.mark.parametrize(
    "text",
    [
        "a" * (MAX_RUN_CHARACTERS + 1),
        " " * (2 * MAX_RUN_CHARACTERS + 1),
        "ab" * MAX_RUN_CHARACTERS + " \n" * MAX_RUN_CHARACTERS + "é" * MAX_RUN_CHARACTERS,
        "x " + "日" * (MAX_RUN_CHARACTERS + 7) + " y",
        "one two " * (MAX_PIECE_CHARACTERS // 8) + "threefour",
        "q" * (MAX_RUN_CHARACTERS - 1) + " " + "q" * MAX_RUN_CHARACTERS,
    ],
    ids=["one over", "white", "three runs", "wide", "long text", "just fits"],
)
def test_long_runs_are_cut_where_meta_cuts_them(tokenizer: Tokenizer, exported: Path, text: str) -> None:
    meta = MetaTokenizer(exported / "tokenizer.model")
    ids = tokenizer.encode(text)
    assert ids == meta.encode(text, bos=False, eos=False)
    assert tokenizer.decode(ids) == text


# Promises


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_bytes(text.encode()) == tokenizer.encode(text)


@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-16"))))
@settings(max_examples=200, deadline=None)
def test_all_bytes_come_back(tokenizer: Tokenizer, data: bytes) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@given(st.lists(st.sampled_from([*special_names(20), "<|", "|>", "eot_id", "\n\n", "a"])).map("".join))
@settings(max_examples=200, deadline=None)
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(index < len(tokenizer.ranks) for index in ids)
    assert tokenizer.decode(ids) == text


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_streaming_gives_the_whole_text_in_whole_characters(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    decoder = tokenizer.stream_decoder()
    parts = [decoder.push(index) for index in ids]
    assert "".join(parts) + decoder.finish() == tokenizer.decode(ids)


def test_streaming_waits_for_the_last_byte(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    ids = [tokenizer.ranks[bytes([byte])] for byte in "é🦙".encode()]
    assert [decoder.push(index) for index in ids] == ["", "é", "", "", "", "🦙"]
    assert decoder.push(ids[0]) == ""
    assert decoder.finish() == "\ufffd"


def test_what_is_no_text_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_decode_leaves_specials_out_if_asked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hi", bos=True, eos=True)
    assert tokenizer.decode(ids) == "<|begin_of_text|>hi<|end_of_text|>"
    assert tokenizer.decode(ids, skip_special=True) == "hi"


@pytest.mark.parametrize("unknown", [1500, -1, 2**40])
def test_decode_names_an_unknown_id(tokenizer: Tokenizer, unknown: int) -> None:
    with pytest.raises(ValueError, match=f"token id {unknown} is outside the vocabulary of 1500"):
        tokenizer.decode([1, unknown])


def test_characters_per_token(tokenizer: Tokenizer) -> None:
    text = "def parse(self): return None"
    assert tokenizer.characters_per_token(text) == len(text) / len(tokenizer.encode(text))
    assert tokenizer.characters_per_token("") == 0


def test_a_tokenizer_can_be_pickled(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a llama") == tokenizer.encode("a llama")


# Files


def test_save_and_load_give_the_same_tokenizer(tokenizer: Tokenizer, exported: Path, tmp_path: Path) -> None:
    for path in (exported, exported / "tokenizer.json", exported / "tokenizer.model"):
        assert Tokenizer.load(path).fingerprint() == tokenizer.fingerprint()
    Tokenizer.load(exported).save(tmp_path)
    for path in exported.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_fingerprint_sees_ranks_and_names(tokenizer: Tokenizer) -> None:
    fewer = Tokenizer(tokenizer.ranks, list(tokenizer.special)[:-1])
    assert fewer.fingerprint() != tokenizer.fingerprint()
    ranks = {**tokenizer.ranks, b"a": tokenizer.ranks[b"b"], b"b": tokenizer.ranks[b"a"]}
    assert Tokenizer(ranks, list(tokenizer.special)).fingerprint() != tokenizer.fingerprint()


def test_a_base_model_ends_in_end_of_text_and_has_no_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path, chat=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == tokenizer.eos_id
    assert theirs.chat_template is None


def test_load_prefers_json_then_metas_file(tokenizer: Tokenizer, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "tokenizer.model").write_bytes((exported / "tokenizer.model").read_bytes())
    assert Tokenizer.load(tmp_path).fingerprint() == tokenizer.fingerprint()
    (tmp_path / "tokenizer.model").write_text("broken")
    with pytest.raises(PunaError, match=r"tokenizer\.model, line 1"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((exported / "tokenizer.json").read_bytes())
    assert Tokenizer.load(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_a_tokenizer_trained_elsewhere_keeps_its_ids(texts: list[str], tmp_path: Path) -> None:
    """One made with `tokenizers` alone: ignore_merges is false, and a merge is listed once."""
    pre = tokenizers.pre_tokenizers
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = pre.Split(tokenizers.Regex(MetaTokenizer.pat_str), "isolated")
    library.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens(list(special_names(11)))
    library.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert ours.vocab_size == 1211
    for text in texts:
        if "<|" not in text:
            assert ours.encode(text) == library.encode(text).ids


def line(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" %d\n" % rank


BYTES = b"".join(line(bytes([byte]), byte) for byte in range(256))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BYTES + b"IQ==\n", "line 257: expected a base64 token and its rank, found b'IQ=='"),
        (BYTES + b"\x0a\x09%%% 3\n", "line 258: expected a base64 token"),
        (BYTES + line(b"ab", 256) + line(b"ab", 257), "line 258: the token b'ab' was already given"),
        (BYTES + line(b"ab", 300), "the 257 ranks must be 0 to 256"),
        (BYTES.replace(line(b"A", 65), line(b"AA", 65)), r"the bytes \[65\] have no token"),
    ],
    ids=["no rank", "no base64", "twice", "gap", "missing byte"],
)
def test_a_broken_rank_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(PunaError, match=message) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)


def change(data: dict, keys: str, value: object) -> None:
    *parents, last = keys.split(".")
    for key in parents:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.type", "WordPiece", "model.type is 'WordPiece'"),
        ("normalizer", {"type": "NFC"}, "normalizer is {'type': 'NFC'}"),
        ("pre_tokenizer", {"type": "ByteLevel"}, "only Llama 3's pattern"),
        ("model.vocab", {"日": 0}, "stands for no byte"),
        ("model.merges", ["Ġ Ġ", "Ġ 日"], "the merge 'Ġ' \\+ '日' gives no token"),
        ("added_tokens", [{"id": 7, "content": "<|eot_id|>"}], "must take the ids from 1244 on"),
        ("added_tokens", [{"id": 1244, "content": "<s>"}], r"no special token <\|begin_of_text\|>"),
    ],
)
def test_a_foreign_tokenizer_json_is_refused(
    key: str, value: object, message: str, exported: Path, tmp_path: Path
) -> None:
    data = json.loads((exported / "tokenizer.json").read_text())
    change(data, key, value)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PunaError, match=message) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)


def test_merges_in_another_order_are_refused(exported: Path, tmp_path: Path) -> None:
    data = json.loads((exported / "tokenizer.json").read_text())
    data["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(PunaError, match="numbered in the order of its merges"):
        Tokenizer.load(tmp_path)


def test_other_load_errors_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds none of tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such tokenizer file"):
        Tokenizer.load(tmp_path / "absent.json")
    (tmp_path / "tokenizer.json").write_text('{\n"model":')
    with pytest.raises(PunaError, match=r"not JSON .*line 2"):
        Tokenizer.load(tmp_path)


def test_spelling_is_undone(tokenizer: Tokenizer, exported: Path) -> None:
    vocab = json.loads((exported / "tokenizer.json").read_text())["model"]["vocab"]
    assert {unspell(token): rank for token, rank in vocab.items()} == tokenizer.ranks
