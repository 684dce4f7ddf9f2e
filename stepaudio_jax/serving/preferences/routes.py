"""The routes under /preferences: comparisons, their sound, and verdicts.

A page of another site cannot use them: a body must be declared as JSON, which browsers send across
sites only where the server allows it.
"""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import soundfile
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import (
    ApiError,
    AudioError,
    ConfigError,
    ConflictError,
    ConsentError,
    DataError,
    OutputError,
)
from stepaudio_jax.serving.chat_routes import read_json_body
from stepaudio_jax.serving.preferences.journals import check_name
from stepaudio_jax.serving.preferences.store import PreferenceStore
from stepaudio_jax.serving.preferences.wire import (
    describe_assignment,
    describe_study,
    reveal,
    take_comparison,
)
from stepaudio_jax.serving.settings import ServingSettings
from stepaudio_jax.storage import parse_json

_T = TypeVar("_T")


def check_preferences(settings: ServingSettings) -> None:
    """Opens the study that the settings name, if any, and closes it again.

    Raises:
        ConfigError, DataError: as of `mount_preferences`.
    """
    store = _open_study(settings)
    if store is not None:
        store.close()


def mount_preferences(app: FastAPI, settings: ServingSettings) -> None:
    """Opens the study that the settings name, if any, and adds its routes.

    Raises:
        ConfigError: the folder, its settings or the pairs cannot be used.
        DataError: a line of the study or of the pairs cannot be read.
    """
    store = _open_study(settings)
    if store is not None:
        app.state.preferences = store
        app.include_router(preference_router(store, settings))


def _open_study(settings: ServingSettings) -> PreferenceStore | None:
    if settings.preferences_folder is None:
        if settings.pairs is not None:
            raise ConfigError("pairs: needs preferences, the folder that keeps the verdicts")
        return None
    return PreferenceStore(settings.preferences_folder, settings.pairs)


def preference_router(store: PreferenceStore, settings: ServingSettings) -> APIRouter:
    """Returns the routes of a study.

    Args:
        store: the study, which stays open while the server runs.
        settings: whose limits on sound hold here too.
    """
    router = APIRouter(prefix="/preferences", tags=["preferences"])

    @router.get("/study")
    async def study() -> JSONResponse:
        """Says how the study is done."""
        return JSONResponse(await _call(describe_study, store))

    @router.post("/consent")
    async def consent(request: Request) -> JSONResponse:
        """Keeps that `annotator` agrees to the text whose hash is `consent`."""
        body = await _body(request)
        await _call(store.agree, body.get("annotator"), body.get("consent"))
        return JSONResponse({"is_kept": True})

    @router.post("/next")
    async def next_pair(request: Request) -> JSONResponse:
        """Returns the next prepared pair for `annotator`, or null where none is left."""
        body = await _body(request)

        def choose() -> dict[str, Any]:
            assignment = store.next_pair(body.get("annotator"))
            shown = None if assignment is None else describe_assignment(store, assignment)
            name = check_name(body.get("annotator"))
            return {"comparison": shown, "progress": store.progress(name)}

        return JSONResponse(await _call(choose))

    @router.post("/comparisons")
    async def compare(request: Request) -> JSONResponse:
        """Keeps a comparison that `annotator` made, and draws which side stands first."""
        body = await _body(request)

        def keep() -> dict[str, Any]:
            # Before any sound is written: nothing of those who did not agree is kept.
            store.check_consent(check_name(body.get("annotator")))
            with store.adding_clips() as add_clip:
                taken = take_comparison(body, add_clip, max_clips=settings.max_clips)
                assignment = store.compare(
                    body.get("annotator"),
                    taken,
                    settings.max_audio_s,
                    shown_first=body.get("shown_first"),
                )
            return describe_assignment(store, assignment)

        return JSONResponse(await _call(keep))

    @router.post("/verdicts")
    async def judge(request: Request) -> JSONResponse:
        """Keeps a verdict; the answer comes once it is on the disk."""
        body = await _body(request)

        def keep() -> dict[str, Any]:
            verdict = store.judge(body)
            assignment = store.find(verdict.assignment)
            return {
                "is_kept": True,
                "id": verdict.id,
                "origins": reveal(store, assignment),
                "progress": store.progress(assignment.annotator),
            }

        return JSONResponse(await _call(keep))

    @router.get("/clips/{assignment}/{index}")
    async def clip(assignment: str, index: int) -> Response:
        """Returns a clip of a comparison as 16 kHz WAV, as the model hears it."""
        content = await _call(_wav, store, assignment, index)
        headers = {"Cache-Control": "private, no-store"}
        return Response(content, media_type="audio/wav", headers=headers)

    return router


def _wav(store: PreferenceStore, assignment: str, index: int) -> bytes:
    comparison = store.study.comparison(store.find(assignment))
    if not 0 <= index < len(comparison.clips):
        raise ApiError(404, f"the comparison has {len(comparison.clips)} clips, from 0")
    samples = load_clip(comparison.clips[index])
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


async def _call(function: Callable[..., _T], *arguments: Any) -> _T:
    """Runs a function that waits for the disk in a thread; its errors become answers."""
    try:
        return await run_in_threadpool(function, *arguments)
    except ConsentError as error:
        raise ApiError(403, str(error), code="consent_needed") from None
    except ConflictError as error:
        raise ApiError(409, str(error), code="conflict") from None
    except (DataError, AudioError) as error:
        raise ApiError(422, str(error)) from None
    except OutputError as error:
        raise ApiError(503, str(error), code="not_kept") from None


async def _body(request: Request) -> Mapping[str, Any]:
    """Returns the JSON object that a request carries.

    Raises:
        ApiError: it is not declared as JSON, arrives too slowly, or is none.
    """
    return await run_in_threadpool(_parse_body, await read_json_body(request))


def _parse_body(content: bytes) -> Mapping[str, Any]:
    value = parse_json(content)
    if not isinstance(value, Mapping):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    if b"\\u" in content:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise ApiError(400, "the body holds half a character", code="invalid_json") from None
    return value
