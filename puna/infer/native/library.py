"""The compiled library: finding it, and the Python side of its structures (native.c has the comments)."""

import ctypes
from ctypes import POINTER, c_double, c_int, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

INSTRUCTIONS = ("plain", "avx2", "avx512", "avx512_vnni", "avx512_bf16")
"""Instruction sets, the slowest first, in the library's order."""
F32, BF16, INT8, INT8_WEIGHTS = range(4)
"""Kinds of matrix."""


class Matrix(ctypes.Structure):
    _fields_ = [("words", c_void_p), ("scale", c_void_p), ("steps", c_int64), ("panels", c_int64), ("kind", c_int64)]


class Model(ctypes.Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("layers", "dim", "heads", "kv_heads", "head_dim", "ffn", "embed_kind")],
        ("norm_eps", c_double),
        *[(name, c_void_p) for name in ("embed", "inv_freq", "norms")],
        ("matrices", POINTER(Matrix)),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("sequences", "rows", "table_stride", "cache_kind", "blocks", "block_size")],
        ("threads", c_int64),
        *[(name, c_void_p) for name in ("tokens", "starts", "lengths", "tables", "cache", "hidden", "logits")],
    ]


def _open(path: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(path))
        library.puna_sizes.restype = c_int64
    except (OSError, AttributeError):
        return None
    library.puna_hidden.argtypes = library.puna_logits.argtypes = [POINTER(Model), POINTER(Batch), c_int]
    sizes = ctypes.sizeof(Matrix) + 1000 * ctypes.sizeof(Model) + 1_000_000 * ctypes.sizeof(Batch)
    return library if library.puna_sizes() == sizes else None  # else built from an older source


@cache
def load_library() -> ctypes.CDLL | None:
    """The library, None where none was built at installation (no compiler) or it does not fit this source."""
    folder = Path(__file__).parent
    found = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_native{suffix}").exists()]
    return _open(found[0]) if found else None


def instruction_sets() -> list[str]:
    """Those of INSTRUCTIONS that the library and this processor have, the fastest last; [] without the library."""
    library = load_library()
    return [name for i, name in enumerate(INSTRUCTIONS) if library is not None and library.puna_has(i)]
