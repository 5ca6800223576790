"""/v1/embeddings: the mean over a text's tokens of what the model holds before its output matrix, of length 1."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response

from puna.infer.engine import Engine
from puna.serve.errors import ApiError, JsonResponse
from puna.serve.prompts import prompt_ids
from puna.serve.requests import EmbeddingRequest
from puna.serve.served import find

router = APIRouter()
MOST_TOKENS, MOST_TEXTS = 8192, 2048
"""OpenAI's limits. A text goes through the model in one piece, and everybody else waits for it."""


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """A vector for each text or list of tokens. Llama is not trained for this: compare vectors of one model only."""
    served = find(request, body.model)
    texts = await prompt_ids(served, body.input, bos=True, param="input")
    most = min(MOST_TOKENS, served.max_len)
    if len(texts) > MOST_TEXTS:
        raise ApiError(f"{len(texts):,} texts; send at most {MOST_TEXTS:,} at once", param="input")
    if too_long := [len(text) for text in texts if len(text) > most]:
        raise ApiError(
            f"a text of {too_long[0]:,} tokens; {most:,} at most", param="input", code="context_length_exceeded"
        )
    data = []
    for index, text in enumerate(texts):
        if await request.is_disconnected():
            break
        vector = await served.worker.call(lambda text=text: embed(served.engine, text))
        told: Any = vector
        if body.encoding_format == "base64":
            told = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": told})
    tokens = sum(map(len, texts))
    served.metrics.prompt_tokens.inc(tokens)
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JsonResponse({"object": "list", "data": data, "model": served.name, "usage": counts})


@torch.inference_mode()
def embed(engine: Engine, ids: Sequence[int]) -> list[float]:
    """The unit vector [dim] of one text."""
    engine.need_whole("/v1/embeddings")
    hidden = engine.model.hidden(torch.tensor([ids], device=engine.device))[0].float()  # [tokens, dim]
    return torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist()
