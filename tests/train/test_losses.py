"""The chunked losses against torch's own on whole logits, and DPO against its formula in plain PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from puna.model.llama import BRANCH
from puna.train import losses
from puna.train.batches import IGNORE, Batch, lay_out
from puna.train.losses import NextToken, Preference, cross_entropy, token_log_probs

DIM, VOCAB = 12, 50


@pytest.fixture(autouse=True)
def small_chunk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "CHUNK", 8)


def inputs(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, DIM, generator=random), torch.randn(VOCAB, DIM, generator=random)
    labels = torch.randint(VOCAB, (n,), generator=random)
    labels[torch.rand(n, generator=random) < 0.3] = IGNORE
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def exact(loss: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> list[Tensor]:
    """A loss and its gradients in fp64."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("n", [1, 8, 24, 29], ids=["one", "a chunk", "chunks", "uneven last chunk"])
def test_cross_entropy_and_its_gradients_are_torchs(n: int):
    hidden, weight, labels = inputs(n, seed=3)
    labels[0] = 7
    loss = cross_entropy(hidden, weight, labels, torch.tensor(0.125))
    found = [loss, *torch.autograd.grad(loss * 3, (hidden, weight))]
    wanted = exact(lambda h, w: F.cross_entropy(h @ w.t(), labels, reduction="sum", ignore_index=IGNORE) / 8,
                   hidden, weight)  # fmt: skip
    for mine, theirs in zip(found, [wanted[0], wanted[1] * 3, wanted[2] * 3]):
        assert relative(mine, theirs) < 1e-6


def test_next_token_is_torchs_mean_over_the_labels():
    hidden, weight, labels = inputs(30)
    batch = Batch(labels.view(2, 15), labels.view(2, 15), torch.zeros(2, 15))
    loss = NextToken()
    found = loss(hidden.view(2, 15, DIM), weight, batch, loss.counts(batch))
    assert relative(found, F.cross_entropy(hidden @ weight.t(), labels).double()) < 1e-6


def test_the_tally_has_torchs_mean_of_each_source():
    hidden, weight, labels = inputs(40)
    sources = torch.arange(40) % 3
    labels[sources == 2] = IGNORE
    batch = Batch(labels.view(2, 20), labels.view(2, 20), torch.zeros(2, 20), sources=sources.view(2, 20))
    loss = NextToken(sources=["a", "b", "c", "never seen"])
    for rows in ([0], [1]):  # two micro-batches add up
        part = Batch(batch.tokens[rows], batch.labels[rows], batch.documents[rows], sources=sources.view(2, 20)[rows])
        loss(hidden.view(2, 20, DIM)[rows], weight, part, loss.counts(batch))
    means = loss.tally.means(loss.tally.take(hidden.device).tolist())
    wanted = [F.cross_entropy((hidden @ weight.t())[sources == i], labels[sources == i]).item() for i in (0, 1)]
    assert means == {"loss/a": pytest.approx(wanted[0], rel=1e-6), "loss/b": pytest.approx(wanted[1], rel=1e-6)}
    assert not loss.tally.take(hidden.device).any()  # and what was taken is gone


def test_logits_of_any_size_stay_finite():
    hidden, weight, labels = inputs(9)
    for scale in (1e4, 1e-4):
        loss = cross_entropy(hidden * scale, weight, labels, torch.tensor(1.0))
        wanted = F.cross_entropy((hidden * scale @ weight.t()).double(), labels, reduction="sum")
        assert relative(loss, wanted) < 1e-6
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (hidden, weight)))


def test_with_every_label_ignored_loss_and_gradients_are_zero():
    hidden, weight, labels = inputs(20)
    batch = Batch(labels.view(2, 10), torch.full((2, 10), IGNORE), torch.zeros(2, 10))
    loss = NextToken()
    value = loss(hidden.view(2, 10, DIM), weight, batch, loss.counts(batch))
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, (hidden, weight)))
    assert not token_log_probs(hidden, weight, batch.labels.flatten()).any()


@pytest.mark.parametrize("n", [1, 16, 29])
def test_token_log_probs_and_their_gradients_are_torchs(n: int):
    hidden, weight, labels = inputs(n, seed=3)
    labels[0] = 7
    upstream = torch.randn(n)

    def plain(h: Tensor, w: Tensor) -> Tensor:
        picked = (h @ w.t()).log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return torch.where(labels == IGNORE, 0, picked)

    found = token_log_probs(hidden, weight, labels)
    wanted = exact(lambda h, w: (plain(h, w) * upstream).sum(), hidden, weight)
    assert relative(found, plain(hidden.double(), weight.double())) < 1e-6
    for mine, theirs in zip(torch.autograd.grad((found * upstream).sum(), (hidden, weight)), wanted[1:]):
        assert relative(mine, theirs) < 1e-6


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made, in backward too."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_tokens_by_vocabulary_never_exists():
    n = 500
    hidden, weight, labels = inputs(n)
    everything = {
        "cross_entropy": lambda: cross_entropy(hidden, weight, labels, torch.tensor(1.0)),
        "token_log_probs": lambda: token_log_probs(hidden, weight, labels).sum(),
        "plain": lambda: F.cross_entropy(hidden @ weight.t(), labels),
    }
    largest = {}
    for name, loss in everything.items():
        with Largest() as recorded:
            torch.autograd.grad(loss(), (hidden, weight))
        largest[name] = recorded.elements
    assert largest["plain"] >= n * VOCAB  # the recorder sees what it is there to see
    assert max(largest["cross_entropy"], largest["token_log_probs"]) <= max(n * DIM, VOCAB * DIM, 8 * VOCAB)


@pytest.mark.parametrize("function", ["cross_entropy", "token_log_probs"])
def test_bf16_is_near_fp32(function: str):
    hidden, weight, labels = inputs(200)

    def loss() -> Tensor:
        if function == "cross_entropy":
            return cross_entropy(hidden, weight, labels, torch.tensor(1.0))
        return token_log_probs(hidden, weight, labels).sum()

    wanted = [loss(), *torch.autograd.grad(loss(), (hidden, weight))]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss()
    found = [value, *torch.autograd.grad(value, (hidden, weight))]
    assert all(tensor.dtype == torch.float32 for tensor in found)
    errors = [relative(mine, theirs.double()) for mine, theirs in zip(found, wanted)]
    assert 0 < max(errors) < 1e-2


# -- DPO --

FORMAT = 3
"""Stands for the format's special tokens."""


def pairs() -> tuple[Batch, list[list[int]], list[tuple[list[int], list[int]]]]:
    """Three rows of a chosen and a rejected dialogue; most responses end in a format token."""
    random = torch.Generator().manual_seed(8)

    def words(n: int) -> list[int]:
        return torch.randint(10, VOCAB, (n,), generator=random).tolist()

    prompts = [words(4), words(2), words(5)]
    ends = [
        ([*words(3), FORMAT], [*words(5), FORMAT]),
        (words(1), [*words(6), FORMAT]),
        ([FORMAT, *words(2)], words(4)),
    ]
    rows = [
        [(prompt + end, [False] * len(prompt) + [True] * len(end)) for end in both]
        for prompt, both in zip(prompts, ends)
    ]
    batch = lay_out(rows, 24, 0)
    batch.documents = (batch.documents + 1) * BRANCH + torch.arange(3)[:, None]
    batch.scored = (batch.labels != IGNORE) & (batch.labels != FORMAT)
    batch.reference = torch.randn(3, 2, generator=random).double() - 9
    return batch, prompts, ends


def plain_dpo(hidden: Tensor, weight: Tensor, beta: float, nll: float) -> Tensor:
    """Equation 7 of Rafailov et al. (arXiv 2305.18290) dialogue by dialogue, with the two changes of section 4.1.4."""
    batch, prompts, ends = pairs()
    assert batch.reference is not None
    preference, likelihood, count = torch.zeros(()), torch.zeros(()), 0
    for row, (prompt, both) in enumerate(zip(prompts, ends)):
        policy, at = [], 0
        for number, end in enumerate(both):
            first = at + len(prompt) - 1  # the state that predicts the first token of the response
            logits = hidden[row, first : first + len(end)] @ weight.t()
            each = -F.cross_entropy(logits, torch.tensor(end), reduction="none")
            policy.append(sum(p for p, token in zip(each, end) if token != FORMAT))
            if number == 0:
                likelihood = likelihood - each.sum()
                count += len(end)
            at += len(prompt) + len(end)
        chosen, rejected = policy[0] - batch.reference[row, 0], policy[1] - batch.reference[row, 1]
        preference = preference - torch.log(torch.sigmoid(beta * (chosen - rejected)))
    return preference / len(prompts) + nll * likelihood / count


@pytest.mark.parametrize(("beta", "nll"), [(0.1, 0.2), (0.5, 0.0), (0.1, 1.0)])
def test_preference_is_dpo_with_a_likelihood_term(beta: float, nll: float):
    batch, _, _ = pairs()
    hidden, weight = torch.randn(3, 24, DIM, requires_grad=True), torch.randn(VOCAB, DIM, requires_grad=True)
    loss = Preference(beta, nll)
    value = loss(hidden, weight, batch, loss.counts(batch))
    found = [value, *torch.autograd.grad(value, (hidden, weight))]
    for mine, theirs in zip(found, exact(lambda h, w: plain_dpo(h, w, beta, nll), hidden, weight)):
        assert relative(mine, theirs) < 1e-6


def test_format_tokens_and_prompts_take_no_part_in_the_preference():
    batch, prompts, ends = pairs()
    hidden, weight = torch.randn(3, 24, DIM, requires_grad=True), torch.randn(VOCAB, DIM)
    loss = Preference(0.1, 0.0)
    (gradient,) = torch.autograd.grad(loss(hidden, weight, batch, loss.counts(batch)), hidden)
    expected = torch.zeros(3, 24, dtype=torch.bool)
    for row, (prompt, both) in enumerate(zip(prompts, ends)):
        at = 0
        for end in both:
            for place, token in enumerate(end):
                expected[row, at + len(prompt) - 1 + place] = token != FORMAT
            at += len(prompt) + len(end)
    assert torch.equal(gradient.abs().sum(-1) > 0, expected)


def test_preference_does_not_depend_on_how_pairs_are_divided():
    batch, _, _ = pairs()
    hidden, weight = torch.randn(3, 24, DIM), torch.randn(VOCAB, DIM)
    loss = Preference(0.1, 0.2)
    counts = loss.counts(batch)

    def part(rows: slice) -> Batch:
        values = (batch.tokens, batch.labels, batch.documents - rows.start, batch.scored, batch.reference)
        return Batch(*(value[rows] for value in values if value is not None))

    whole = loss(hidden, weight, batch, counts)
    parts = [loss(hidden[rows], weight, part(rows), counts) for rows in (slice(0, 1), slice(1, 3))]
    assert torch.allclose(whole, sum(parts, torch.zeros(())), rtol=1e-6)
    assert torch.equal(counts, loss.counts(part(slice(0, 1))) + loss.counts(part(slice(1, 3))))
