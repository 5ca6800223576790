"""Losses on the hidden states, chunked so that tokens x vocabulary never exists as a whole.

At Llama's 128,256 entries the logits of one 8K row are 4 GB in fp32, and their gradient as much again. Both functions
here go through the tokens in chunks of a few hundred; memory is chunk x vocabulary, whatever the batch.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.model.llama import BRANCH
from puna.train.batches import IGNORE, Batch

CHUNK = 512
Softmax = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Loss(Protocol):
    """What a training stage minimises: a sum over its batches divided by counts over ALL batches of the step.

    One that is a sum over tokens says so with `whole_rows = False`: context parallelism may then cut its rows.
    """

    def counts(self, batch: Batch) -> Tensor:
        """What the terms are divided by, as a float tensor; summed over micro-batches and processes."""
        ...

    def __call__(self, hidden: Tensor, weight: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        """This batch's part of the loss. hidden [rows, seq_len, dim], weight [vocab, dim]."""
        ...


def softmax_gradient(logits: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each label [n], and `scale` ([n] or scalar) times the gradient of its negative by the
    logits [n, vocab], in fp32 and in the logits' own memory.

    Tokens labelled IGNORE have log-probability zero and no gradient.
    """
    kept = labels != IGNORE
    index = torch.where(kept, labels, 0)[:, None]
    # Without torch.compile every operation is a pass over [n, vocab]: in place they take half as long as log_softmax.
    highest = logits.amax(-1, keepdim=True)
    picked = logits.gather(1, index) - highest
    exps = logits.sub_(highest).exp_()
    sums = exps.sum(-1, keepdim=True)
    factor = (kept * scale)[:, None]
    gradient = exps.mul_(factor / sums).scatter_add_(1, index, -factor)
    return torch.where(kept, (picked - sums.log())[:, 0], 0.0), gradient


def loss_chunk(
    hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor, softmax: Softmax = softmax_gradient
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed cross-entropy of a chunk times `scale`, the log-probabilities of its labels [n], and the sum's gradients
    by hidden and by the logits."""
    log_probs, gradient = softmax((hidden @ weight.t()).float(), labels, scale)
    gradient = gradient.to(hidden.dtype)
    return -log_probs.sum() * scale, log_probs, gradient @ weight, gradient


def add_weight_gradient(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Add a chunk's gradient by the weight to `total` [vocab, dim], in fp32; without a matrix between where it can."""
    if total.dtype == hidden.dtype:
        total.addmm_(gradient.t(), hidden)
    else:
        total += gradient.t() @ hidden


class _CrossEntropy(torch.autograd.Function):
    """The gradient is made together with the loss: the logits are computed once and never kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor, chunk_fn: Any
    ) -> tuple[Tensor, Tensor]:
        hidden, weight = hidden.detach(), weight.detach()  # torch.compile warns about tensors with a history
        total = torch.zeros((), device=hidden.device)
        log_probs = torch.empty(len(hidden), device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = None
        if ctx.needs_input_grad[1]:  # not where it is frozen
            weight_grad = torch.zeros(weight.shape, device=weight.device)
        for i in range(0, len(hidden), CHUNK):
            part = slice(i, i + CHUNK)
            loss, log_probs[part], hidden_grad[part], gradient = chunk_fn(hidden[part], weight, labels[part], scale)
            total += loss
            if weight_grad is not None:
                add_weight_gradient(weight_grad, gradient, hidden[part])
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(log_probs)
        return total, log_probs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grads[0], None if weight_grad is None else weight_grad * grads[0], None, None, None


def product_dtype(device: torch.device) -> torch.dtype:
    """The precision of matrix products here: autocast's where it is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def whole_or_part(weight: Tensor) -> tuple[Tensor, Softmax | None]:
    """An output matrix, or the part of it that tensor parallelism left here with the softmax over all parts."""
    if not hasattr(weight, "device_mesh"):  # a DTensor has one; to ask for its type would import a second's worth
        return weight, None
    from puna.parallel.tensor import local_vocabulary

    return local_vocabulary(weight)


def labelled_first(labels: Tensor, multiple: int) -> Tensor | None:
    """The places of the tokens that have a label, and of as many others as make up a `multiple` (compiled code wants
    few shapes); None for all."""
    ignored = labels == IGNORE
    count = min(len(labels), -(-int((~ignored).sum()) // multiple) * multiple)
    if count == len(labels):
        return None
    return ignored.to(torch.uint8).argsort(stable=True)[:count].sort().values


class Tally:
    """The cross-entropy of a step by source, from what the loss computes anyway."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._sums: Tensor | None = None

    def add(self, sources: Tensor, labels: Tensor, log_probs: Tensor) -> None:
        """Tokens [n] of the sources of those numbers, with the log-probabilities of their labels."""
        if self._sums is None:
            self._sums = torch.zeros(2, len(self.names), device=log_probs.device)
        self._sums[0].index_add_(0, sources, -log_probs)
        self._sums[1].index_add_(0, sources, (labels != IGNORE).float())

    def take(self, device: torch.device) -> Tensor:
        """What was added since the last call: for each source the nats, then for each the labels. To be summed over
        processes; where several have the same tokens, their means stay."""
        sums, self._sums = self._sums, None
        return torch.zeros(2 * len(self.names), device=device) if sums is None else sums.flatten()

    def put(self, taken: Iterable[Tensor]) -> None:
        """Give back what was taken."""
        for sums in taken:
            sums = sums.view(2, -1)
            self._sums = sums if self._sums is None else self._sums + sums

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """`loss/NAME` of the sources that have labels among the sums, in nats a token."""
        count = len(self.names)
        found = zip(self.names, sums[:count], sums[count:])
        return {f"loss/{name}": nats / labels for name, nats, labels in found if labels}


def tally_of(loss: Loss) -> Tally:
    """A loss's own, or an empty one for those that know no sources."""
    return getattr(loss, "tally", None) or Tally(())


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    scale: Tensor,
    chunk_fn: Callable[..., Any] = loss_chunk,
    sources: Tensor | None = None,
    tally: Tally | None = None,
) -> Tensor:
    """Sum of cross-entropies times `scale`: hidden [n, dim], weight [vocab, dim], labels [n] or IGNORE -> scalar.

    `scale` is a scalar tensor, usually one over the labels of the whole step. The products are taken in autocast's
    precision, the softmax and the weight's gradient in fp32. Where the tokens have `sources` [n], the tally gets them.
    """
    dtype = product_dtype(hidden.device)
    weight, softmax = whole_or_part(weight)
    chunk_fn = partial(loss_chunk, softmax=softmax) if softmax else chunk_fn
    chosen = labelled_first(labels, 1 if chunk_fn is loss_chunk else CHUNK)
    if chosen is not None:
        hidden, labels = hidden.index_select(0, chosen), labels[chosen]
        sources = sources if sources is None else sources[chosen]
    with torch.autocast(hidden.device.type, enabled=False):
        arguments = (hidden.to(dtype), weight.to(dtype), labels, scale, chunk_fn)
        total, log_probs = _CrossEntropy.apply(*arguments)  # pyright: ignore
    if tally and sources is not None:
        tally.add(sources, labels, log_probs)
    return total


class _TokenLogProbs(torch.autograd.Function):
    """The logits are computed again in backward, since the gradient of each token comes only then."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, softmax: Softmax | None) -> Tensor:
        ctx.save_for_backward(hidden, weight, labels)
        ctx.softmax = softmax or softmax_gradient
        chunks = zip(hidden.split(CHUNK), labels.split(CHUNK))
        if softmax:
            one = torch.ones((), device=hidden.device)
            return torch.cat([softmax((h @ weight.t()).float(), y, one)[0] for h, y in chunks])
        losses = [
            F.cross_entropy((h @ weight.t()).float(), y, reduction="none", ignore_index=IGNORE) for h, y in chunks
        ]
        return -torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, labels = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros(weight.shape, device=weight.device) if ctx.needs_input_grad[1] else None
        for i in range(0, len(hidden), CHUNK):
            part = slice(i, i + CHUNK)
            _, gradient = ctx.softmax((hidden[part] @ weight.t()).float(), labels[part], -grads[0][part])
            gradient = gradient.to(hidden.dtype)
            hidden_grad[part] = gradient @ weight
            if weight_grad is not None:
                add_weight_gradient(weight_grad, gradient, hidden[part])
        return hidden_grad, weight_grad, None, None


def token_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label, zero where it is IGNORE: hidden [n, dim], labels [n] -> [n] fp32."""
    dtype = product_dtype(hidden.device)
    weight, softmax = whole_or_part(weight)
    kept = (labels != IGNORE).nonzero()[:, 0]
    found = torch.zeros(len(labels), device=hidden.device)
    if len(kept) == 0:
        return found + 0 * hidden.sum()
    with torch.autocast(hidden.device.type, enabled=False):
        some = hidden.index_select(0, kept).to(dtype)
        values = _TokenLogProbs.apply(some, weight.to(dtype), labels[kept], softmax)  # pyright: ignore
    return found.index_put((kept,), values)  # pyright: ignore[reportArgumentType]


class NextToken:
    """Cross-entropy per label: pretraining on all tokens, SFT on the assistant's (the labels say which)."""

    whole_rows = False

    def __init__(self, compiled: bool = False, sources: Sequence[str] = ()) -> None:
        """`sources`: the names of those that a batch's tokens are numbered by; `tally` then tells them apart."""
        self._chunk = torch.compile(loss_chunk, dynamic=False) if compiled else loss_chunk
        self.tally = Tally(sources)

    def counts(self, batch: Batch) -> Tensor:
        return (batch.labels != IGNORE).sum().float()[None]

    def __call__(self, hidden: Tensor, weight: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        scale = 1 / counts[0].clamp(min=1)
        sources = batch.sources.flatten() if batch.sources is not None and self.tally.names else None
        arguments = (hidden.flatten(0, 1), weight, batch.labels.flatten(), scale, self._chunk)
        return cross_entropy(*arguments, sources=sources, tally=self.tally)


class Preference:
    """DPO with a likelihood term (section 4.1.4): a pair is a document, numbered through the batch; branch 1 of it is
    the chosen response, 2 the rejected.

    -log sigmoid(beta * (chosen - rejected)), each the log-probability of its scored labels relative to the reference
    model, averaged over pairs; plus `nll` times the mean cross-entropy of the chosen labels, all of them.

    Sums of log-probabilities are fp64: they are thousands of nats, of which the loss is about differences. In fp32 a
    sum's last digit alone, times beta, is 1e-5 of the loss.
    """

    def __init__(self, beta: float, nll: float) -> None:
        self.beta, self.nll = beta, nll

    def counts(self, batch: Batch) -> Tensor:
        assert batch.reference is not None
        chosen = (batch.labels != IGNORE) & (batch.documents // BRANCH == 1)
        return torch.stack([torch.tensor(float(len(batch.reference)), device=chosen.device), chosen.sum().float()])

    def __call__(self, hidden: Tensor, weight: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        assert batch.reference is not None
        log_probs, sums = self.sums(hidden, weight, batch)
        margins = sums - batch.reference
        preference = -F.logsigmoid(self.beta * (margins[:, 0] - margins[:, 1])).sum() / counts[0]
        likelihood = (log_probs * (batch.documents // BRANCH == 1)).sum() / counts[1].clamp(min=1)
        return preference.float() - self.nll * likelihood

    def sums(self, hidden: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of every label [rows, seq_len], and the scored ones summed: chosen, rejected [pairs, 2]
        fp64."""
        assert batch.scored is not None
        assert batch.reference is not None
        log_probs = token_log_probs(hidden.flatten(0, 1), weight, batch.labels.flatten()).view_as(batch.tokens)
        place = batch.documents % BRANCH * 2 + batch.documents // BRANCH - 1
        place = torch.where(batch.scored, place, 0).flatten()
        scored = (log_probs.double() * batch.scored).flatten()
        return log_probs, scored.new_zeros(batch.reference.numel()).index_add(0, place, scored).view(-1, 2)
