"""Who runs in the next step: continuous batching with chunked prefill and preemption.

Each step first gives one token to every request whose output has begun, then spends what is left of the step's token
budget on prompts, the oldest first; a long prompt takes several steps and does not hold up the others. Requests join
and leave between any two steps. When blocks run out, the youngest request gives up its own and is computed again later
(vLLM's recomputation, arXiv 2309.06180, section 4.5); the oldest always goes on, so all come to an end.
"""

from collections import deque
from typing import NamedTuple

from puna.infer.cache import BLOCK, BlockManager, block_key
from puna.infer.request import Request, TokenLogprob


class Chunk(NamedTuple):
    """Tokens `start` to `end` of a request, whose keys and values are to be computed."""

    request: Request
    start: int
    end: int

    @property
    def ends(self) -> bool:
        """Whether the last token is among them, so that the output goes on."""
        return self.end >= len(self.request.tokens)


class Plan(NamedTuple):
    """One step's work. The books on the cache are already those of after the step."""

    prompts: list[Chunk]
    outputs: list[Chunk]
    """Of requests in the middle of their output: the last token, and the guesses after it."""


class Scheduler:
    """`budget`: tokens in a step; `rows`: requests in a step; `scored`: tokens in a chunk whose every log-probability
    is asked for."""

    def __init__(self, blocks: BlockManager, budget: int, rows: int, scored: int) -> None:
        self.blocks, self.budget, self.rows, self.scored = blocks, budget, rows, scored
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order in which they were admitted

    def schedule(self) -> Plan:
        outputs = self._outputs()
        budget = self.budget - sum(end - start for _, start, end in outputs)
        chunks: list[Chunk] = []

        def advance(request: Request) -> None:
            nonlocal budget
            size = min(budget, self.scored) if scores(request) else budget
            end, last = request.computed + size, len(request.tokens)
            # a chunk of one token would be computed as an output is, which may differ by rounding
            end = last if end >= last else end - (end == last - 1 and size > 1)
            chunks.append(self._advance(request, end))
            budget -= end - chunks[-1].start

        outputting = {chunk.request.id for chunk in outputs}
        for request in self.running:
            if request.id not in outputting and budget > 0:
                advance(request)
        while self.waiting and budget > 0 and len(self.running) < self.rows and self._admit(self.waiting[0]):
            self.running.append(self.waiting.popleft())
            advance(self.running[-1])
        return Plan(chunks, outputs)

    def remove(self, request: Request) -> None:
        """Take a finished or aborted request out and let go of its blocks."""
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._release(request)

    def start_over(self) -> None:
        """Let nothing count as computed: neither by running requests nor by the prefix cache."""
        for request in reversed(list(self.running)):
            self._preempt(request)
        self.blocks.forget_all()

    def _outputs(self) -> list[Chunk]:
        outputs = []
        for request in list(self.running):
            if request.in_output and self._make_room(request):
                outputs.append(self._advance(request, request.computed + 1 + len(request.guesses)))
        return outputs

    def _make_room(self, request: Request) -> bool:
        """Give a request the blocks for its next tokens, at the cost of the youngest; False if that is itself."""
        missing = blocks_for(len(request.tokens) + len(request.guesses)) - len(request.blocks)
        while request.blocks and self.blocks.free < missing:
            self._preempt(self.running[-1])
        if not request.blocks:
            return False
        request.blocks += [self.blocks.take() for _ in range(missing)]
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.computed = request.published = 0
        request.guesses = []
        self.waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks = []

    def _admit(self, request: Request) -> bool:
        """Give a waiting request its known blocks and new ones for the rest of its tokens, if there are enough."""
        add_keys(request)
        known = self._known(request)
        if self._in_progress(request, len(known)):
            return False  # what it needs next is being computed for another: wait and share it
        logprobs = self._known_logprobs(request, known)
        for block in known:
            self.blocks.hold(block)
        missing = blocks_for(len(request.tokens)) - len(known)
        if self.blocks.free < missing:
            self.blocks.release(known)
            return False
        request.blocks = known + [self.blocks.take() for _ in range(missing)]
        request.published, request.computed = len(known), len(known) * BLOCK
        request.drafted = request.computed
        if not request.begun:
            request.cached, request.prompt_logprobs = request.computed, logprobs
        return True

    def _known(self, request: Request) -> list[int]:
        """The longest known beginning, in blocks; the last two tokens are always computed, for the logits and so that
        they are not a chunk of one."""
        known = []
        for key in request.keys[: max(0, len(request.tokens) - 2) // BLOCK]:
            block = self.blocks.find(key)
            if block is None:
                break
            known.append(block)
        return known

    def _in_progress(self, request: Request, known: int) -> bool:
        if known >= max(0, len(request.tokens) - 2) // BLOCK:
            return False
        key = request.keys[known]
        return any(key in other.keys[other.computed // BLOCK :] for other in self.running if not other.in_output)

    def _known_logprobs(self, request: Request, known: list[int]) -> list[TokenLogprob | None]:
        """Log-probabilities of the known beginning where they are asked for; `known` is cut to where they go on."""
        likeliest = request.sampling.prompt_logprobs
        if likeliest is None or not scores(request):
            return []
        logprobs: list[TokenLogprob | None] = []
        for place, key in enumerate(request.keys[: len(known)]):
            kept = self.blocks.logprobs(key, likeliest)
            if kept is None:
                # the last of the blocks is computed again: its logits tell the first token after it
                del known[max(0, place - 1) :]
                return logprobs
            logprobs += kept
        del known[-1:]
        return logprobs

    def _advance(self, request: Request, end: int) -> Chunk:
        """Count tokens as computed. Their full blocks are known from now on: a request that begins alike may share
        them in this very step, since a layer writes all keys and values before any is read."""
        chunk = Chunk(request, request.computed, end)
        request.computed = end
        full = min(end, len(request.tokens)) // BLOCK  # guesses are not yet tokens
        if request.published < full:
            add_keys(request)
            for place in range(request.published, full):
                self.blocks.publish(request.blocks[place], request.keys[place])
            request.published = full
        return chunk


def scores(request: Request) -> bool:
    """Whether log-probabilities of its prompt are to be computed."""
    return request.sampling.prompt_logprobs is not None and not request.begun


def first_wanted(chunk: Chunk) -> int:
    """The first token of a chunk whose logits are needed, counted in the request; the chunk's end if there is none."""
    request = chunk.request
    if scores(request):
        return max(1, len(request.prompt_logprobs)) - 1
    return len(request.tokens) - 1 if chunk.ends else chunk.end


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK)


def add_keys(request: Request) -> None:
    """Bring the keys of a request's full blocks up to date."""
    for place in range(len(request.keys), len(request.tokens) // BLOCK):
        parent = request.keys[-1] if request.keys else b""
        request.keys.append(block_key(parent, request.tokens[place * BLOCK : (place + 1) * BLOCK]))
