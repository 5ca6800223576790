"""Every layout against one process: the loss, every gradient and their norm, in fp32."""

import warnings
from dataclasses import dataclass
from functools import partialmethod
from typing import Literal
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch.distributed.tensor import DTensor

from puna.errors import PunaError
from puna.model.llama import BRANCH, Llama, LlamaConfig, document_mask, document_positions
from puna.parallel.context import View, chunk_places
from puna.parallel.mesh import check, make_mesh
from puna.parallel.parts import Parts
from puna.parallel.pipeline import split, stages_of
from puna.parallel.tensor import overlap_tensor_parallel
from puna.recipe import Pretrain, Training
from puna.recipe.layout import Layout
from puna.train.batches import IGNORE, Batch
from puna.train.launch import World, launch
from puna.train.loop import rows_of
from puna.train.losses import NextToken

CONFIG = LlamaConfig(256, dim=64, layers=6, heads=8, kv_heads=4, ffn_dim=128)
ROWS, SEQ_LEN = 8, 64


@dataclass(frozen=True)
class Case:
    layout: Layout
    micro_rows: int = 1
    compiled: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"


def make_model() -> Llama:
    return Llama(CONFIG).init_weights(torch.Generator().manual_seed(0))


def make_batch() -> Batch:
    """Documents of about 16 tokens; a tenth of the labels ignored, and all of the first half of the rows."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, CONFIG.vocab_size, (ROWS, SEQ_LEN + 1), generator=generator)
    documents = (torch.rand(ROWS, SEQ_LEN, generator=generator) < 0.06).cumsum(1)
    labels = tokens[:, 1:].clone()
    labels[torch.rand(ROWS, SEQ_LEN, generator=generator) < 0.1] = IGNORE
    labels[: ROWS // 2] = IGNORE
    return Batch(tokens[:, :-1].contiguous(), labels, documents)


def compare(world: World, cases: list[Case]) -> None:
    """Raises AssertionError in the process that finds a difference."""
    # What torch.compile can lose is lost while it traces; to make fast code of it would take minutes.
    traced = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    with warnings.catch_warnings(), patch.object(torch.nn.Module, "compile", traced):
        warnings.simplefilter("ignore")  # torch's, about itself
        for case in cases:
            compare_one(world, case)


def compare_one(world: World, case: Case) -> None:
    batch = make_batch()
    counts = NextToken().counts(batch)
    whole = make_model()
    expected = NextToken()(whole.hidden(batch.tokens, documents=batch.documents), whole.lm_head.weight, batch, counts)
    expected.backward()
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values())).item()
    exact = case.precision == "fp32"
    parts = Parts(make_model(), NextToken(), options_of(case), world, case.compiled)
    mine = [rows_of_batch(batch, rows) for rows in rows_of(range(ROWS), case.micro_rows, *parts.share)]
    counts = parts.sum_counts(torch.stack([NextToken().counts(part) for part in mine]).sum(0))
    total = world.sum(parts.step(mine, ROWS, counts)[None])
    assert total.item() == pytest.approx(expected.item(), rel=1e-6 if exact else 1e-3), case
    for name, parameter in parts.parameters.items():
        assert isinstance(parameter.grad, DTensor), f"{case}: {name} has no gradient"
        gradient = parameter.grad.full_tensor()
        error = ((gradient - gradients[name]).norm() / gradients[name].norm()).item()
        assert error < (1e-5 if exact else 3e-2), f"{case}: {name} is off by {error:.1e}"
        assert gradient.any(), f"{case}: the gradient of {name} is zero"
        assert gradient.dtype == torch.float32
    assert parts.norm().item() == pytest.approx(norm, rel=1e-5 if exact else 1e-2), case


def options_of(case: Case) -> Training:
    knobs = {"seq_len": SEQ_LEN, "batch_rows": ROWS, "micro_rows": case.micro_rows, "layout": case.layout}
    return Training.model_validate(knobs | {"precision": case.precision})


def rows_of_batch(batch: Batch, rows: range) -> Batch:
    return Batch(batch.tokens[list(rows)], batch.labels[list(rows)], batch.documents[list(rows)])


CASES = {
    1: [Case(Layout(shard=1))],
    2: [
        Case(Layout(tp=2)),
        Case(Layout(cp=2)),
        Case(Layout(dp=2, shard=2)),
        Case(Layout(pp=2)),
        Case(Layout(pp=2, schedule="interleaved", stages=2)),
        Case(Layout(pp=2, schedule="zero-bubble", stages=2)),
        Case(Layout(pp=2, schedule="zbv", stages=2), micro_rows=2),
        Case(Layout(tp=2, recompute="full")),
        Case(Layout(cp=2, recompute="selective")),
        Case(Layout(tp=2, recompute="full"), compiled=True),
        Case(Layout(tp=2), precision="bf16"),
    ],
    3: [Case(Layout(pp=3, schedule="interleaved", stages=2)), Case(Layout(dp=3, shard=3), micro_rows=2)],
    4: [
        Case(Layout(tp=2, cp=2)),
        Case(Layout(tp=2, dp=2), compiled=True),
        Case(Layout(dp=4, shard=2)),
        Case(Layout(cp=2, dp=2)),
        Case(Layout(cp=2, dp=2), precision="bf16"),
        Case(Layout(tp=2, pp=2), micro_rows=8),
        Case(Layout(cp=2, pp=2, schedule="interleaved", stages=2), micro_rows=2),
        Case(Layout(pp=2, dp=2, recompute="full")),
        Case(Layout(tp=4)),
    ],
    8: [
        Case(Layout(tp=2, cp=2, dp=2, recompute="full")),
        Case(Layout(tp=2, cp=2, pp=2, schedule="interleaved", stages=2)),
        Case(Layout(tp=2, pp=2, dp=2)),
        Case(Layout(cp=2, pp=2, dp=2, recompute="selective")),
    ],
    16: [
        Case(Layout(tp=2, cp=2, pp=2, dp=2, schedule="interleaved", stages=2)),
        Case(Layout(tp=2, cp=2, pp=2, dp=2, recompute="full")),
    ],
}
"""All of {tp, cp, pp, dp} in {1, 2}, and more. Three processes and few micro-batches: what does not come out even is
filled up."""


@pytest.mark.parametrize("processes", CASES)
def test_equals_one_process(processes: int) -> None:
    launch(compare, processes, CASES[processes])


def test_embedding_and_output_count_as_a_layer_each() -> None:
    assert split(6, 4) == [range(0, 1), range(1, 3), range(3, 5), range(5, 6)]
    assert [len(part) for part in split(126, 16)] == [7] + 14 * [8] + [7]  # the 405B model (section 3.3.2)
    assert stages_of(1, Layout(pp=4, stages=2, schedule="interleaved")) == [1, 5]
    assert stages_of(1, Layout(pp=4, stages=2, schedule="zbv")) == [1, 6]


def test_every_rank_has_an_equal_share_of_causal_attention() -> None:
    places = [chunk_places(64, 4, rank) for rank in range(4)]
    assert torch.equal(torch.cat(places).sort().values, torch.arange(64))
    assert len({int(p.sum()) for p in places}) == 1
    documents = make_batch().documents
    documents[:, 20:] += BRANCH
    mask = document_mask(documents)[:, :, places[1]][..., torch.cat(places)]
    assert torch.equal(View(4, 1).mask(documents), mask)
    assert torch.equal(View(4, 1).positions(documents), document_positions(documents)[:, places[1]])


def test_a_layout_that_cannot_be_names_the_axis() -> None:
    check(Layout(tp=4, cp=2, pp=8, dp=3), CONFIG, 64)
    check(Layout(), CONFIG, 63)
    for layout, message in (
        (Layout(tp=8), "tp = 8 does not divide kv_heads = 4"),
        (Layout(tp=2, cp=3), "seq_len = 64 is not a multiple of 2 x cp x tp = 12"),
        (Layout(pp=9), "pp = 9 with 1 stages each: 6 layers, embedding and output make 8 parts"),
        (Layout(pp=2, stages=2), "stages = 2 needs pp above 1 and another schedule than 1f1b"),
        (Layout(pp=2, schedule="zbv"), "schedule zbv needs stages = 2, not 1"),
    ):
        with pytest.raises(PunaError, match=message):
            check(layout, CONFIG, 64)


def test_async_tp_is_refused_where_it_can_do_nothing() -> None:
    with pytest.raises(ValidationError, match="tp = 1: there is nothing to wait for"):
        Layout(async_tp=True)
    options = Pretrain.model_validate({"layout": {"tp": 2, "async_tp": True}, "seq_len": SEQ_LEN})
    with pytest.raises(PunaError, match="compiled layers on GPUs, not layers that are not compiled on cpu"):
        Parts(make_model(), NextToken(), options, World(0, 2), compiled=False)


def test_async_tp_is_asked_of_the_compiler() -> None:
    from torch._inductor import config
    from torch.distributed._symmetric_memory import is_symm_mem_enabled_for_group

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = make_mesh(Layout(), "cpu")["tp"]
        with config.patch(_micro_pipeline_tp=False):
            overlap_tensor_parallel(mesh)
            assert config._micro_pipeline_tp
        assert not config._micro_pipeline_tp
        assert is_symm_mem_enabled_for_group(mesh.get_group().group_name)
    finally:
        dist.destroy_process_group()


def test_the_axes_must_make_the_number_of_processes() -> None:
    assert (Layout(tp=2).over(8).dp, Layout(tp=2).over(8).shard) == (4, 4)
    assert Layout(dp=4, shard=2).over(4).shard == 2
    with pytest.raises(PunaError, match="layout tp 2 x cp 1 x pp 1 x dp auto does not make 3 processes"):
        Layout(tp=2).over(3)
    with pytest.raises(PunaError, match=r"layout\.shard = 3 does not divide dp = 4"):
        Layout(shard=3).over(4)
