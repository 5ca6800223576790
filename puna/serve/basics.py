"""/v1/models, /tokenize, /detokenize, /health and /metrics."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from puna.serve.errors import ApiError, JsonResponse
from puna.serve.prompts import chat_of, chat_prompt, read_tools
from puna.serve.requests import DetokenizeRequest, TokenizeRequest
from puna.serve.served import BUILT_WITH_LLAMA, Served, find

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The models that are served."""
    served: dict[str, Served] = request.app.state.models
    return JsonResponse({"object": "list", "data": [card(model) for model in served.values()]})


@router.get("/v1/models/{name}")
async def model(name: str, request: Request) -> Response:
    return JsonResponse(card(find(request, name)))


def card(served: Served) -> dict[str, Any]:
    found = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "puna",
        "max_model_len": served.max_len,
    }
    # Section 1.b of the Llama 3.1 Community License wants the words shown.
    return found | ({"license": f"llama{served.llama}", "notice": BUILT_WITH_LLAMA} if served.llama else {})


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Token ids of a text, or of a chat as the model reads it."""
    served = find(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError("give either prompt or messages", param="prompt")
    if body.messages is not None:
        chat = chat_of(body.messages, read_tools(body.tools))
        ids = await chat_prompt(served, chat, body.add_generation_prompt)
    else:
        ids = served.tokenizer.encode(body.prompt or "", bos=body.add_special_tokens)
    strings = [served.token_text(token) for token in ids] if body.return_token_strs else None
    return JsonResponse({"count": len(ids), "max_model_len": served.max_len, "tokens": ids, "token_strs": strings})


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of token ids; special tokens by their names."""
    served = find(request, body.model)
    served.check_tokens(body.tokens, "tokens")
    return JsonResponse({"prompt": served.tokenizer.decode(body.tokens)})


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while every engine's thread runs."""
    served: dict[str, Served] = request.app.state.models
    dead = [name for name, model in served.items() if not model.worker.alive]
    if dead:
        raise ApiError(f"the engine of {', '.join(dead)} has stopped; start the server anew", 503)
    return JsonResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counts for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
