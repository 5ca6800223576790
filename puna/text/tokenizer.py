"""Llama 3's tokenizer: byte-level BPE, trained, loaded, run and saved.

Encoding runs on tiktoken, which needs only the ranks of the tokens; training runs on `tokenizers`; the file
formats are in tokenizer_files.py. Text never becomes a special token: whoever wants one uses its id.
"""

import codecs
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import tiktoken

from puna.errors import PunaError
from puna.text import tokenizer_files as files

# Meta's limits (llama-models, models/llama3/tokenizer.py): tiktoken fails on longer pieces.
MAX_PIECE_CHARACTERS = 400_000
MAX_RUN_CHARACTERS = 25_000  # of white space, or of anything else

_RUN = re.compile(r"\s+|\S+")
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")  # how Python's surrogateescape carries bytes that are not UTF-8


class Tokenizer:
    """A table of token bytes -> rank, and special tokens numbered from the end of it.

    Attributes:
        ranks: token bytes -> id, ids 0..n-1; holds each of the 256 single bytes.
        special: special token name -> id, ids n..vocab_size-1.
        bos_id, eos_id, pad_id, ...: the ids of the special tokens with a meaning.
        stop_ids: the tokens that end a generation: end of text, of message, of turn.
    """

    def __init__(self, ranks: dict[bytes, int], special_names: Sequence[str]) -> None:
        _check_ranks(ranks)
        if len(set(special_names)) < len(special_names):
            raise PunaError("a special token is named twice; remove one")
        self.ranks = ranks
        self.special = {name: index for index, name in enumerate(special_names, start=len(ranks))}
        self._special_ids = frozenset(self.special.values())
        self.bos_id = self._id("<|begin_of_text|>")
        self.eos_id = self._id("<|end_of_text|>")
        self.pad_id = self._id("<|finetune_right_pad_id|>")
        self.start_header_id = self._id("<|start_header_id|>")
        self.end_header_id = self._id("<|end_header_id|>")
        self.eom_id = self._id("<|eom_id|>")
        self.eot_id = self._id("<|eot_id|>")
        self.python_tag_id = self._id("<|python_tag|>")
        self.stop_ids = [self.eos_id, self.eom_id, self.eot_id]
        self._encoding = tiktoken.Encoding(
            "puna", pat_str=files.PATTERN, mergeable_ranks=ranks, special_tokens=self.special
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load Meta's `tokenizer.model`, a `tokenizer.json`, or a directory that holds one of them.

        Raises FileNotFoundError or PunaError, naming the file (and the line of a rank file).
        """
        path = Path(path)
        if path.is_dir():
            names = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")
            found = [path / name for name in names if (path / name).is_file()]
            if not found:
                raise FileNotFoundError(f"{path}: holds none of {', '.join(names)}")
            path = found[0]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such tokenizer file")
        if path.suffix == ".json":
            ranks, names = files.read_tokenizer_json(path)
        else:
            ranks, names = files.read_ranks(path), files.special_names(256)
        try:
            return cls(ranks, names)
        except PunaError as error:
            raise PunaError(f"{path}: {error}") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, specials: int = 256) -> Self:
        """Learn a vocabulary of `vocab_size` tokens, of which `specials` are special and 256 single bytes.

        The result depends on the texts alone, not on their order or the number of threads.
        """
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Trainable

        names = files.special_names(specials)
        if vocab_size < specials + 256:
            raise PunaError(f"vocab_size={vocab_size} cannot hold {specials} specials and the 256 bytes")
        trainable = Trainable(models.BPE())
        split = pre_tokenizers.Split(Regex(files.PATTERN), "isolated")
        trainable.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        trainable.train_from_iterator(texts, trainer)
        ranks = {files.unspell(token): rank for token, rank in trainable.get_vocab().items()}
        if len(ranks) < vocab_size - specials:
            raise PunaError(
                f"vocab_size={vocab_size} asks for {vocab_size - specials} ordinary tokens, but the texts "
                f"yield only {len(ranks)}: give more text, or lower vocab_size to {len(ranks) + specials}"
            )
        return cls(dict(sorted(ranks.items(), key=lambda item: item[1])), names)

    # Encoding

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of `text`; a special token's name in it is encoded as the ordinary characters it is.

        Lone surrogates, which are no text, become U+FFFD.
        """
        ids = [self.bos_id] if bos else []
        for piece in _pieces(text):
            ids += self._encoding.encode_ordinary(piece)
        if eos:
            ids.append(self.eos_id)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` over many texts in threads (tiktoken releases the interpreter lock)."""
        workers = os.cpu_count() or 1
        size = len(texts) // (8 * workers) + 1  # a task of one short text would cost more than it saves
        shares = [texts[start : start + size] for start in range(0, len(texts), size)]
        with ThreadPoolExecutor(workers) as pool:
            return [ids for share in pool.map(lambda share: list(map(self.encode, share)), shares) for ids in share]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes: UTF-8 as `encode` has it, every other byte as a token of its own."""
        ids: list[int] = []
        for part in _NOT_UTF8.split(data.decode("utf-8", errors="surrogateescape")):
            if _NOT_UTF8.match(part):
                ids += [self.ranks[bytes([byte])] for byte in part.encode("utf-8", errors="surrogateescape")]
            else:
                ids += self.encode(part)
        return ids

    # Decoding

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. Raises ValueError on an unknown id."""
        if skip_special:
            ids = [index for index in ids if index not in self._special_ids]
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of token ids. Raises ValueError on an unknown id."""
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            unknown = next(index for index in ids if not 0 <= index < self.vocab_size)
            raise ValueError(
                f"token id {unknown} is outside the vocabulary of {self.vocab_size}: "
                "this tokenizer does not match the model or data that gave it"
            ) from None

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self)

    # Facts

    @property
    def vocab_size(self) -> int:
        """Ordinary and special tokens together."""
        return len(self.ranks) + len(self.special)

    def fingerprint(self) -> str:
        """SHA-256 of the ranks and the special names: equal only for tokenizers that give the same ids."""
        names = "\n".join(self.special).encode()
        return hashlib.sha256(files.write_ranks(self.ranks) + names).hexdigest()

    def characters_per_token(self, text: str) -> float:
        """How much of `text` one token holds; the paper reports 3.94 for English (section 3.2)."""
        return len(text) / max(1, len(self.encode(text)))

    # Saving

    def save(self, directory: str | Path, chat: bool = True) -> None:
        """Write the tokenizer files of a Hugging Face model directory, and Meta's `tokenizer.model`.

        `chat=False` is for a base model: no chat template, and end_of_text instead of eot_id as `eos_token`.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        ends = "<|eot_id|>" if chat else "<|end_of_text|>"
        bos, pad = "<|begin_of_text|>", "<|finetune_right_pad_id|>"
        roles = {"bos_token": bos, "eos_token": ends, "pad_token": pad}
        files.write_json(directory / "tokenizer.json", files.tokenizer_json(self.ranks, self.special, bos))
        config = files.tokenizer_config(self.special, roles, chat)
        files.write_json(directory / "tokenizer_config.json", config)
        files.write_json(directory / "special_tokens_map.json", roles)
        (directory / "tokenizer.model").write_bytes(files.write_ranks(self.ranks))
        if chat:
            (directory / "chat_template.jinja").write_bytes(files.CHAT_TEMPLATE.read_bytes())

    def _id(self, name: str) -> int:
        if name not in self.special:
            raise PunaError(f"no special token {name}: use Llama 3.1's tokenizer files (3.0's have the same ids)")
        return self.special[name]


class StreamDecoder:
    """Turns ids into text as they come, holding back bytes until they make a whole character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, *ids: int) -> str:
        """The characters that `ids` complete, perhaps none."""
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _check_ranks(ranks: dict[bytes, int]) -> None:
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise PunaError(f"the {len(ranks)} ranks must be 0 to {len(ranks) - 1}, each once")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise PunaError(f"the bytes {missing} have no token, so some text could not be encoded")


def _pieces(text: str) -> Iterator[str]:
    """Cut `text` to Meta's limits: where Meta's tokenizer cuts, so that the ids are the same."""
    for start in range(0, len(text), MAX_PIECE_CHARACTERS):
        piece = text[start : start + MAX_PIECE_CHARACTERS]
        done = 0
        if _may_hold_long_run(piece):
            for run in _RUN.finditer(piece):
                for cut in range(run.start() + MAX_RUN_CHARACTERS, run.end(), MAX_RUN_CHARACTERS):
                    yield piece[done:cut]
                    done = cut
        yield piece[done:]


def _may_hold_long_run(piece: str) -> bool:
    """A run over the limit covers a window of half the limit; to scan for runs costs as much as to encode."""
    half = MAX_RUN_CHARACTERS // 2
    windows = (piece[start : start + half] for start in range(0, len(piece) - half + 1, half))
    return any(window.isspace() or window.split(maxsplit=1) == [window] for window in windows)
