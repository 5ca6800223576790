"""The engine on several devices against one process: tokens and log-probabilities, in fp32."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from puna.errors import PunaError
from puna.infer.engine import Engine, Output, Sampling
from puna.infer.parallel import Batch, join, load_engine, load_part, micro_batches
from puna.infer.parts import check_layout, name_in_part
from puna.model import fp8
from puna.model.llama import PRESETS, Llama
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.train.launch import World, launch
from puna.train.save import save_model

CONFIG = replace(
    PRESETS["1m"], vocab_size=272, dim=64, layers=6, heads=8, kv_heads=4, ffn_dim=96, max_seq_len=512
)  # fmt: skip
PROMPTS = [list(range(1, 100)), [*range(1, 60), 7, 8, 9], [200, 201], [5, 6] * 40]
"""The first two share their beginning; all are longer than a micro-batch or share one."""
ASKED = [
    Sampling(12, ignore_stop=True, logprobs=3, prompt_logprobs=2),
    Sampling(12, ignore_stop=True, logprobs=0, speculate="ngram"),
    Sampling(12, temperature=1.0, seed=5, ignore_stop=True, logprobs=1),
    Sampling(9, logprobs=0, regex="[a-z]{20}"),
]


class Case(NamedTuple):
    directory: str
    ranks: list[list[int]]
    """[pp][tp]"""


def answers(engine: Engine) -> list[list[Output]]:
    """What the engine gives to all requests at once, and to the first again, from the cache."""
    found: dict[int, list[Output]] = {}
    for prompts, asked in ((PROMPTS, ASKED), (PROMPTS[:1], ASKED[:1])):
        found |= {engine.add(prompt, sampling): [] for prompt, sampling in zip(prompts, asked)}
        while engine.waiting or engine.running:
            for output in engine.step():
                found[output.request].append(output)
    return list(found.values())


def logprobs_of(outputs: list[Output]) -> torch.Tensor:
    prompt = [one for one in outputs[0].prompt_logprobs or [] if one]
    return torch.tensor([one.logprob for one in prompt] + [x.logprob for o in outputs for x in o.logprobs or []])


def compare(world: World, cases: list[Case]) -> None:
    """Raises AssertionError in the process that finds a difference."""
    for directory, ranks in cases:
        mesh = DeviceMesh("cpu", ranks, mesh_dim_names=("pp", "tp"))
        mesh._flatten()  # makes a group, in which all must take part
        if mesh.get_coordinate() is None:
            continue
        engine = load_part(directory, mesh, blocks=100, rows=8, micro_batch=8, budget=128)
        if engine is None:
            continue
        where = f"{Path(directory).name}, {ranks}"
        held = sum(parameter.numel() for parameter in engine.model.parameters())
        whole = Engine.load(directory, blocks=100, rows=8, budget=128, native=False)
        share = held / sum(parameter.numel() for parameter in whole.model.parameters())
        assert share < 1.25 / len(ranks) / len(ranks[0]), f"{where}: rank 0 holds {share:.2f}"
        for mine, expected in zip(answers(engine), answers(whole), strict=True):
            assert [o.tokens for o in mine] == [o.tokens for o in expected], where
            assert [o.text for o in mine] == [o.text for o in expected], where
            error = (logprobs_of(mine) - logprobs_of(expected)).abs().max().item()
            assert error < 1e-5, f"{where}: off by {error:.1e}"
        with pytest.raises(PunaError, match="log_probs needs the whole model"):
            engine.log_probs([[1, 2]])
        engine.close()
    dist.barrier()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "fp32")


def save(path: Path, quantized: bool = False) -> Path:
    model = Llama(CONFIG).init_weights(torch.Generator().manual_seed(3))
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    save_model(fp8.quantize(model) if quantized else model, tokenizer, path)
    return path


def test_every_layout_equals_one_process(model: Path, tmp_path: Path):
    quantized = save(tmp_path / "fp8", quantized=True)
    cases = [
        Case(str(model), [[0, 1]]),
        Case(str(model), [[2], [3]]),
        Case(str(model), [[0, 1], [2, 3]]),
        Case(str(model), [[0], [1], [2], [3]]),
        Case(str(quantized), [[0], [1]]),
    ]
    launch(compare, 4, cases)


def test_what_cannot_be_cut_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch):
    for tp, pp, told in (
        (3, 1, "--tp 3 does not divide the model's heads = 8"),
        (8, 1, "--tp 8 does not divide the model's kv_heads = 4"),
        (1, 6, "--pp 6 leaves a stage without any of the model's 6 layers"),
    ):
        with pytest.raises(PunaError, match=told):
            check_layout(CONFIG, tp, pp)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(PunaError, match="torchrun --nproc-per-node 4"):
        load_engine(model, tp=2, pp=2)
    with pytest.raises(PunaError, match="int8 is for one CPU"):
        load_engine(model, tp=2, precision="int8")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(PunaError, match="need 4 processes, and this is one of 3"):
        join(2, 2)


def test_micro_batches_hold_every_token_once():
    """Requests of 5, 1 and 6 tokens with 0, 7 and 4 before them, in parts of 4."""
    tables = torch.tensor([[1], [2], [3]], dtype=torch.int32)
    lengths = torch.tensor([5, 8, 10], dtype=torch.int32)
    whole = Batch(torch.arange(12), torch.tensor([0, 5, 6, 12]), lengths, tables, torch.tensor([4, 5, 10, 11]))
    parts = list(micro_batches(whole, 3, 4))
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert [part.starts.tolist() for part in parts] == [[0, 4], [0, 1, 2, 4], [0, 4]]
    assert [part.lengths.tolist() for part in parts] == [[4], [5, 8, 6], [10]]
    assert [part.tables.flatten().tolist() for part in parts] == [[1], [1, 2, 3], [3]]
    assert [part.wanted.tolist() for part in parts] == [[], [0, 1], [2, 3]]
    assert len(list(micro_batches(whole, 3, 7))) == 1


def test_layers_count_from_zero_in_every_part():
    assert name_in_part("layers.4.mlp.up_proj.weight", range(3, 6), False, True) == "layers.1.mlp.up_proj.weight"
    assert name_in_part("layers.2.mlp.up_proj.weight", range(3, 6), False, True) is None
    assert [name_in_part(name, range(2), True, False) for name in ("embed_tokens.weight", "norm.weight")] == [
        "embed_tokens.weight", None,
    ]  # fmt: skip
