"""The files a tokenizer lives in: Meta's rank file and a Hugging Face directory, read and written.

A byte-level BPE tokenizer is one table, token bytes -> rank. Meta's `tokenizer.model` is that table, one
base64 token and its rank a line. Hugging Face's `tokenizer.json` spells the same tokens with one printable
character a byte (GPT-2's table, `BYTE_TO_CHAR`) and adds the list of merges, which the ranks imply.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from puna.errors import PunaError

# Llama 3's split pattern (llama-models, models/llama3/tokenizer.py). BPE never merges across its pieces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the space or sign before it
    r"|\p{N}{1,3}"  # digits in groups of up to three
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation, with the space before and the newlines after it
    r"|\s*[\r\n]+"  # newlines
    r"|\s+(?!\S)|\s+"  # other white space; the last space stays with the word that follows
)
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def _byte_to_char() -> dict[int, str]:
    """GPT-2's table: a printable Latin-1 byte is its own character, the others follow from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


BYTE_TO_CHAR = _byte_to_char()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def spell(token: bytes) -> str:
    """Token bytes in the spelling of tokenizer.json, e.g. b" the" -> "Ġthe"."""
    return "".join(BYTE_TO_CHAR[byte] for byte in token)


def unspell(token: str) -> bytes:
    """Undo `spell`; raises KeyError on a character outside the table."""
    return bytes(CHAR_TO_BYTE[char] for char in token)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read Meta's rank file. Errors name the file and the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            encoded, rank = line.split()
            token, ranks_so_far = base64.b64decode(encoded, validate=True), len(ranks)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            raise PunaError(
                f"{path}, line {number}: expected a base64 token and its rank, found {line[:60]!r}. "
                "(A SentencePiece model, as of Llama 1 and 2, is another format.)"
            ) from None
        if len(ranks) == ranks_so_far:
            raise PunaError(f"{path}, line {number}: the token {token!r} was already given; remove one line")
    return ranks


def write_ranks(ranks: dict[bytes, int]) -> bytes:
    """The content of Meta's rank file, in rank order."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ordered)


def merges_from_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that joins to a token, in the order in which BPE may apply them.

    tiktoken needs no list of merges: it joins whichever neighbours give the lowest-ranked token. So each way
    to cut a token into two tokens is a merge, and its priority is the rank of the whole.
    """
    merges = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
            if left is not None and right is not None:
                merges.append((rank, left, right, token[:cut], token[cut:]))
    merges.sort(key=lambda merge: merge[:3])
    return [merge[3:] for merge in merges]


def read_tokenizer_json(path: Path) -> tuple[dict[bytes, int], list[str]]:
    """Read a Llama 3 `tokenizer.json`: (token bytes -> rank, special token names in id order)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PunaError(f"{path}: not JSON ({error}); copy the file again") from None
    model = data.get("model") or {}
    _refuse_other_forms(path, data, model)
    special = sorted((token["id"], token["content"]) for token in data.get("added_tokens", []))
    names = [name for _, name in special]
    ranks: dict[bytes, int] = {}
    for token, rank in model["vocab"].items():
        if token in names:  # some writers repeat the added tokens in the vocabulary
            continue
        try:
            ranks[unspell(token)] = rank
        except KeyError as error:
            raise PunaError(f"{path}: model.vocab has {token!r}, whose {error} stands for no byte") from None
    _refuse_unordered_merges(path, model)
    if [index for index, _ in special] != list(range(len(ranks), len(ranks) + len(names))):
        raise PunaError(
            f"{path}: added_tokens must take the ids from {len(ranks)} on, one after another, as Llama 3's do"
        )
    return ranks, names


def _refuse_other_forms(path: Path, data: dict[str, Any], model: dict[str, Any]) -> None:
    """Only what this package would encode in the same way is read."""
    if model.get("type") != "BPE" or "vocab" not in model:
        raise PunaError(f"{path}: model.type is {model.get('type')!r}; only byte-level BPE can be read")
    if data.get("normalizer") is not None:
        raise PunaError(f"{path}: normalizer is {data['normalizer']!r}; Llama 3's tokenizer has none (null)")
    pre = data.get("pre_tokenizer") or {}
    patterns = [step.get("pattern", {}).get("Regex") for step in pre.get("pretokenizers", [pre])]
    if PATTERN not in patterns:
        raise PunaError(f"{path}: pre_tokenizer splits by {patterns}; only Llama 3's pattern can be read")


def _refuse_unordered_merges(path: Path, model: dict[str, Any]) -> None:
    """Ranks can stand for the merges only where later merges give higher ids."""
    previous = 0
    for merge in model.get("merges", []):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        index = model["vocab"].get(left + right, -1)
        if index < previous:
            found = f"id {index} after one that gave {previous}" if index >= 0 else "no token"
            raise PunaError(
                f"{path}: the merge {left!r} + {right!r} gives {found}; "
                "only a vocabulary numbered in the order of its merges can be read"
            )
        previous = index


def _special_entry(name: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": name, **plain, "special": True}


def tokenizer_json(ranks: dict[bytes, int], special: dict[str, int], bos: str) -> dict[str, Any]:
    """The content of `tokenizer.json`, in the form published with Llama 3.1."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    add_bos: dict[str, Any] = {"SpecialToken": {"id": bos, "type_id": 0}}
    add_bos_again: dict[str, Any] = {"SpecialToken": {"id": bos, "type_id": 1}}
    first: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    second: dict[str, Any] = {"Sequence": {"id": "B", "type_id": 1}}
    template = {
        "type": "TemplateProcessing",
        "single": [add_bos, first],
        "pair": [add_bos, first, add_bos_again, second],
        "special_tokens": {bos: {"id": bos, "ids": [special[bos]], "tokens": [bos]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **_special_entry(name)} for name, index in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # As tiktoken: a piece that is a token stays whole, even where no merges lead to it.
            "ignore_merges": True,
            "vocab": {spell(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])},
            "merges": [f"{spell(left)} {spell(right)}" for left, right in merges_from_ranks(ranks)],
        },
    }


def tokenizer_config(special: dict[str, int], named: dict[str, str], chat: bool) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; `named` gives bos_token, eos_token and pad_token."""
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(index): _special_entry(name) for name, index in special.items()},
        **named,
        # The published file says true, which makes decoding drop spaces before punctuation.
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if chat:
        config["chat_template"] = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return config


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def special_names(count: int) -> list[str]:
    """Llama 3.1's special tokens in id order, the rest reserved (tokenizer.json of Llama-3.1-8B).

    llama-models 0.3.0 gives two reserved ids other names (step_id, the third reserved; image, the twelfth),
    which Llama 3.1 does not use; the ids are the same.
    """
    if count < 11:
        raise PunaError(f"specials={count} is too few: the Llama 3.1 chat format needs 11 special tokens")
    names = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"]
    names += ["finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id"]
    names += ["eom_id", "eot_id", "python_tag"]
    names += [f"reserved_special_token_{i}" for i in range(3, count - 8)]
    return [f"<|{name}|>" for name in names]
