"""Every layout against one process: the loss, every gradient and their norm, in fp32."""

import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from puna.errors import PunaError
from puna.model.llama import Llama, LlamaConfig, document_mask, document_positions
from puna.parallel.context import apply_context_parallel, chunk_places, document_mask_of
from puna.parallel.mesh import FSDP_AXIS, Layout, make_mesh
from puna.parallel.pipeline import Part, Pipeline, split, stages_of
from puna.parallel.recompute import Recompute, apply_recompute
from puna.parallel.shard import apply_fsdp
from puna.parallel.tensor import VocabularyParallel, apply_tensor_parallel, whole_sequence
from puna.train.batches import IGNORE, Batch
from puna.train.launch import World, launch
from puna.train.losses import NextToken

CONFIG = LlamaConfig(256, dim=64, layers=6, heads=8, kv_heads=4, ffn_dim=128)
ROWS, SEQ_LEN = 8, 64


@dataclass(frozen=True)
class Case:
    layout: Layout
    schedule: str = "1f1b"
    per_rank: int = 1
    recompute: Recompute = "none"
    micro_batches: int = 4


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


def local(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def compare(world: World, cases: list[Case]) -> None:
    """Raises AssertionError in the process that finds a difference."""
    warnings.simplefilter("ignore")  # torch's, about itself
    batch = make_batch()
    counts = NextToken().counts(batch)
    whole = make_model()
    expected = NextToken()(whole.hidden(batch.tokens, documents=batch.documents), whole.lm_head.weight, batch, counts)
    expected.backward()
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    for case in cases:
        loss, found = train_step(case, batch, counts)
        assert loss == pytest.approx(expected.item(), rel=1e-6), case
        squares = torch.zeros(())
        for name, gradient in found.items():
            error = ((gradient - gradients[name]).norm() / gradients[name].norm()).item()
            assert error < 1e-5, f"{case}: {name} is off by {error:.1e}"
            squares += gradient.square().sum()
        if case.layout.pp > 1:
            mesh = make_mesh(case.layout, "cpu")
            dist.all_reduce(squares, group=mesh.get_group("pp"))
        assert squares.sqrt().item() == pytest.approx(norm.item(), rel=1e-5), case


def train_step(case: Case, batch: Batch, counts: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a step over all processes, and the whole gradients of the parameters that this one has."""
    layout, loss = case.layout, NextToken()
    mesh = make_mesh(layout, "cpu")
    pipeline = None
    if layout.pp > 1:
        pipeline = Pipeline(make_model(), mesh["pp"], case.schedule, case.per_rank, case.micro_batches)
    parts = pipeline.parts if pipeline else [Part(make_model(), range(CONFIG.layers), True, True)]
    for part in parts:
        if layout.cp > 1:
            apply_context_parallel(part, mesh["cp"])
        if layout.tp > 1:
            apply_tensor_parallel(part, mesh["tp"])
            loss._chunk = VocabularyParallel(mesh["tp"], CONFIG.vocab_size)
        apply_recompute(part, case.recompute)
        apply_fsdp(part, mesh[FSDP_AXIS], torch.float32, reshard=layout.pp == 1)

    rows = slice(*(ROWS // layout.dp * (mesh.get_local_rank("dp") + i) for i in (0, 1)))
    places = chunk_places(SEQ_LEN, layout.cp, mesh.get_local_rank("cp"))
    positions = document_positions(batch.documents)[rows][:, places]
    mask = document_mask_of(batch.documents[rows], layout.cp, mesh.get_local_rank("cp"))
    tokens, labels = batch.tokens[rows][:, places], batch.labels[rows][:, places]

    def loss_of(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        head = parts[-1].lm_head
        assert head is not None
        return loss(whole_sequence(hidden), local(head.weight), Batch(labels, labels, labels), counts)

    if pipeline:
        pipeline.make_schedule(torch.device("cpu"), loss_of)
        total = pipeline.step(tokens, labels, positions, mask)
    else:
        value = loss_of(parts[0](tokens, positions, mask), labels)
        value.backward()
        total = value.detach()
    dist.all_reduce(total)
    gradients = {}
    for name, parameter in (item for part in parts for item in part.named_parameters()):
        assert parameter.grad is not None, f"{case}: {name} has no gradient"
        gradients[name] = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
    return total.item() / layout.tp, gradients


CASES = {
    2: [
        Case(Layout(tp=2)),
        Case(Layout(cp=2)),
        Case(Layout(dp=2)),
        Case(Layout(pp=2)),
        Case(Layout(pp=2), "interleaved", per_rank=2, micro_batches=8),
        Case(Layout(pp=2), "zero-bubble", per_rank=2),
        Case(Layout(pp=2), "zbv", per_rank=2),
        Case(Layout(tp=2), recompute="full"),
        Case(Layout(cp=2), recompute="selective"),
    ],
    4: [
        Case(Layout(tp=2, cp=2)),
        Case(Layout(tp=2, dp=2)),
        Case(Layout(cp=2, dp=2)),
        Case(Layout(tp=2, pp=2)),
        Case(Layout(cp=2, pp=2), "interleaved", per_rank=2),
        Case(Layout(pp=2, dp=2), recompute="full"),
        Case(Layout(tp=4)),
    ],
    8: [
        Case(Layout(tp=2, cp=2, dp=2), recompute="full"),
        Case(Layout(tp=2, cp=2, pp=2), "interleaved", per_rank=2),
        Case(Layout(tp=2, pp=2, dp=2)),
        Case(Layout(cp=2, pp=2, dp=2), recompute="selective"),
    ],
    16: [Case(Layout(tp=2, cp=2, pp=2, dp=2), "interleaved", per_rank=2)],
}


@pytest.mark.parametrize("processes", CASES)
def test_equals_one_process(processes: int) -> None:
    launch(compare, processes, CASES[processes])


def test_embedding_and_output_count_as_a_layer_each() -> None:
    assert split(6, 4) == [range(0, 1), range(1, 3), range(3, 5), range(5, 6)]
    assert [len(part) for part in split(126, 16)] == [7] + 14 * [8] + [7]  # the 405B model (section 3.3.2)
    assert stages_of(1, 4, 2, "interleaved") == [1, 5]
    assert stages_of(1, 4, 2, "zbv") == [1, 6]


def test_every_rank_has_an_equal_share_of_causal_attention() -> None:
    places = [chunk_places(64, 4, rank) for rank in range(4)]
    assert torch.equal(torch.cat(places).sort().values, torch.arange(64))
    assert len({int(p.sum()) for p in places}) == 1
    documents = make_batch().documents
    mask = document_mask(documents)[:, :, places[1]][..., torch.cat(places)]
    assert torch.equal(document_mask_of(documents, 4, 1), mask)


def test_a_layout_that_cannot_be_names_the_axis() -> None:
    Layout(tp=4, cp=2, pp=8, dp=3).check(CONFIG, 64)
    for layout, message in (
        (Layout(tp=8), "tp = 8 does not divide kv_heads = 4"),
        (Layout(tp=2, cp=3), "seq_len = 64 is not a multiple of 2 x cp x tp = 12"),
        (Layout(pp=9), "pp = 9: 6 layers, embedding and output make 8 parts"),
    ):
        with pytest.raises(PunaError, match=message):
            layout.check(CONFIG, 64)
