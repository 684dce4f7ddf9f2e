"""The routes beside chat: models, health, metrics, tokens."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stepaudio_jax.errors import ApiError
from stepaudio_jax.serving.chat import ChatService
from stepaudio_jax.serving.chat_protocol import TokenizeRequest, parse_body
from stepaudio_jax.serving.chat_routes import read_json_body
from stepaudio_jax.serving.dialogue import build_chat_prompt, check_text_size
from stepaudio_jax.serving.docs_page import body_schema
from stepaudio_jax.serving.metrics import CONTENT_TYPE


def service_router(service: ChatService) -> APIRouter:
    """Returns the routes of a service beside chat."""
    router = APIRouter(tags=["service"])

    @router.get("/v1/models", summary="Lists the models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model.card() for model in service.models]}

    @router.get("/v1/models/{name:path}", summary="Describes a model")
    async def model(name: str) -> dict[str, Any]:
        card: dict[str, Any] = service.models.get(name).card()
        return card

    @router.get("/health", summary="Says whether requests are answered (200), or not (503)")
    async def health() -> JSONResponse:
        state = service.state
        body = {"status": "ok" if state == "ready" else state}
        if state == "starting":
            body["progress"] = service.thread.progress
        return JSONResponse(body, status_code=200 if state == "ready" else 503)

    @router.get("/metrics", summary="Figures for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    @router.post(
        "/tokenize",
        summary="Returns the tokens of a text or of a dialogue",
        openapi_extra=body_schema(TokenizeRequest),
    )
    async def tokenize(request: Request) -> dict[str, Any]:
        body: TokenizeRequest = parse_body(TokenizeRequest, await read_json_body(request))
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give 'prompt' or 'messages', and not both", param="prompt")
        chosen = service.models.get(body.model)
        options = body.chat_template_kwargs

        def tokens() -> list[int]:
            if body.messages is None:
                prompt = body.prompt or ""
                check_text_size([prompt], chosen, "prompt")
                return chosen.loaded.tokenizer.encode(prompt)
            built = build_chat_prompt(
                chosen,
                body.messages,
                body.tools or [],
                enable_thinking=options is None or options.enable_thinking is not False,
                clips=service.clips,
                settings=service.settings,
            )
            ids: list[int] = built.prompt.tokens.tolist()
            return ids

        ids = await service.in_thread(tokens)
        return {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": chosen.lane.engine.slot_tokens,
        }

    return router
