"""`puna serve`: models behind OpenAI's API, and a chat page."""

import ipaddress
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.errors import PunaError
from puna.log import console

if TYPE_CHECKING:  # what a server needs takes seconds to import
    from puna.serve.metrics import Metrics
    from puna.serve.served import Served

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PRECISIONS = ("int8", "int8_weights")
MODELS = typer.Argument(metavar="RUN_OR_MODEL ...", help="Runs or Hugging Face model directories; NAME=PATH names one.")


def serve(
    models: Annotated[list[str], MODELS],
    host: Annotated[str, typer.Option(help="Where to listen; an address others can reach needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[str | None, typer.Option(help="What clients must send; the process list shows it.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file that holds the key.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bf16, fp16, fp32; int8, int8_weights on a CPU; by default fp32 there, bf16 on a GPU."),
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Blocks of 16 tokens in the KV cache.")] = None,
    rows: Annotated[int, typer.Option(min=1, max=1000, help="Sequences that run side by side.")] = 256,
    queue: Annotated[int, typer.Option(min=0, help="Sequences that may wait besides; more are refused.")] = 256,
    profile: Annotated[str, typer.Option(help="The chat format, hf or meta.")] = "hf",
    speculate: Annotated[str, typer.Option(help="Guess ahead: off, ngram, or a small model of the same kind.")] = "off",
    tools: Annotated[list[str] | None, typer.Option(help="Tools to run here for the page, as in puna chat.")] = None,
    brave_key: Annotated[str | None, typer.Option(help="A key or a file with one; else BRAVE_API_KEY.")] = None,
    wolfram_key: Annotated[str | None, typer.Option(help="A key or a file with one; else WOLFRAM_APP_ID.")] = None,
    drain: Annotated[int, typer.Option(min=0, help="Seconds that requests may take to end after SIGTERM.")] = 300,
    tp: Annotated[int, typer.Option(min=1, help="Devices that share each layer, under torchrun.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Groups of them that share the layers out.")] = 1,
) -> None:
    """Serve models by OpenAI's API, and a chat page at /."""
    import uvicorn

    from puna.serve.app import create_app
    from puna.serve.guard import Access
    from puna.serve.metrics import Metrics
    from puna.tools import open_toolbox

    key = read_key(api_key, api_key_file)
    if not is_local(host) and key is None:
        raise PunaError(f"--host {host} can be reached from elsewhere; give --api-key or --api-key-file")
    metrics = Metrics()
    served = load(models, metrics, dtype, profile, rows + queue, speculate, tp=tp, pp=pp, blocks=blocks, rows=rows)
    if not served:
        return  # torchrun's process of rank 0 served
    toolbox = open_toolbox(tools, brave_key=brave_key, wolfram_key=wolfram_key) if tools else None
    app = create_app(served, metrics, Access(key, local=key is None), toolbox)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    console.print(f"serving {', '.join(model.name for model in served)}", highlight=False)
    if tp * pp > 1:  # uvicorn repeats the signal that ended it: that must not keep us from letting the others go
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        uvicorn.run(
            app, host=host, port=port, access_log=False, log_config=None, server_header=False, ws="none",
            timeout_graceful_shutdown=drain,
        )  # fmt: skip
    finally:
        for model in served:
            model.engine.close()


def read_key(key: str | None, file: Path | None) -> str | None:
    """The key that clients must send, or None."""
    if key is not None and file is not None:
        raise PunaError("--api-key and --api-key-file exclude each other; drop one")
    if file is not None:
        if not file.is_file():
            raise PunaError(f"--api-key-file {file}: there is no such file")
        key = file.read_text(encoding="utf-8").strip()
    if key == "":
        raise PunaError("the key is empty; anybody could send that")
    return key


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(
    models: Sequence[str],
    metrics: "Metrics",
    dtype: str | None,
    profile: Any,
    most: int,
    speculate: str = "off",
    **options: Any,
) -> list["Served"]:
    """The models under their names: those of their directories, or NAME in NAME=PATH. None in a process that takes part
    in serving one on several devices, after that has ended."""
    import torch

    from puna.cli import find_model
    from puna.infer.engine import Sampling
    from puna.infer.parallel import load_engine
    from puna.model.licence import llama_release
    from puna.model.weights import load_hf
    from puna.serve.served import Served

    if dtype in PRECISIONS:
        options["precision"] = dtype
    elif dtype is not None:
        if dtype not in DTYPES:
            raise PunaError(f"--dtype {dtype}: choose one of {', '.join((*DTYPES, *PRECISIONS))}")
        options["dtype"] = getattr(torch, DTYPES[dtype])
    if profile not in ("hf", "meta"):
        raise PunaError(f"--profile {profile}: choose hf or meta")
    named = dict(name_of(model) for model in models)
    if len(named) < len(models):
        raise PunaError("two models have the same name; write NAME=PATH for one of them")
    if len(models) > 1 and options.get("tp", 1) * options.get("pp", 1) > 1:
        raise PunaError("--tp and --pp serve one model; start another server for the next")
    options["budget"] = max(1024, 2 * (options["rows"] or 0))
    found = []
    for name, path in named.items():
        directory = find_model(path)
        engine = load_engine(directory, **options)
        if engine is None:
            return []
        guess: Any = speculate
        if speculate not in ("off", "ngram"):
            engine.draft, guess = load_hf(find_model(Path(speculate)), engine.dtype, engine.device), "draft"
            if engine.draft.config.vocab_size != engine.tokenizer.vocab_size:
                raise PunaError(f"--speculate {speculate}: that model has another tokenizer than {name}")
        engine.generate([[engine.tokenizer.bos_id]], Sampling(2, ignore_stop=True))  # what is made at first use
        found.append(Served(name, engine, metrics, profile, most, guess, llama_release(directory)))
    return found


def name_of(model: str) -> tuple[str, Path]:
    """NAME=PATH as (NAME, PATH), a path under its own last part."""
    name, equals, path = model.partition("=")
    if equals and name and "/" not in name and not Path(model).exists():
        return name, Path(path)
    return Path(model).resolve().name, Path(model)
