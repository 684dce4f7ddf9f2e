"""A server of the page and of preferences whose model writes what a test wants, word by word.

The page, the study, the access rules and the errors are the real ones. Only the model is scripted,
since a model does not write markup, or the same reply twice, when a test needs it.
"""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time

import soundfile
import uvicorn
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from stepaudio_jax.serving import ServingSettings
from stepaudio_jax.serving.app import create_app


class ScriptedModel:
    """Answers requests of /v1/chat/completions.

    Attributes:
        script: called with the request's number, from 0, and its body; returns (reasoning, reply).
        requests: the bodies that came.
        delay_s: between two words.
        cancelled: number of streams that a client left.
    """

    def __init__(self, script=None, delay_s=0.0):
        self.script = script or (lambda number, body: (f"Thought {number}.", f"Reply {number}."))
        self.delay_s = delay_s
        self.requests = []
        self.cancelled = 0

    def router(self):
        """Returns the routes of the model."""
        router = APIRouter(prefix="/v1")

        @router.get("/models")
        async def models():
            return {"object": "list", "data": [{"id": "scripted", "object": "model"}]}

        @router.post("/chat/completions")
        async def complete(request: Request):
            body = await request.json()
            self.requests.append(body)
            answer = self.script(len(self.requests) - 1, body)
            if isinstance(answer, JSONResponse):
                return answer
            return StreamingResponse(self._stream(*answer), media_type="text/event-stream")

        return router

    async def _stream(self, reasoning, reply):
        finished = False
        try:
            for key, text in (("reasoning_content", reasoning), ("content", reply)):
                for word in text.split(" "):
                    await asyncio.sleep(self.delay_s)
                    delta = {"delta": {key: word + " "}, "index": 0, "finish_reason": None}
                    yield f"data: {json.dumps({'choices': [delta]})}\n\n"
            last = {"delta": {}, "index": 0, "finish_reason": "stop"}
            yield f"data: {json.dumps({'choices': [last]})}\n\n"
            yield "data: [DONE]\n\n"
            finished = True
        finally:
            self.cancelled += not finished


def sound_of(body):
    """Returns [(samples, rate)] of each clip in the last message of a request."""
    content = body["messages"][-1]["content"]
    parts = content if isinstance(content, list) else []
    return [
        soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
        for part in parts
        if part["type"] == "input_audio"
    ]


@contextlib.contextmanager
def serving(model, **settings):
    """Serves a model and yields (address, application)."""
    chosen = ServingSettings(port=0, **settings)
    app = create_app(chosen, routers=[model.router()])
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        thread.join(10)
        if getattr(app.state, "preferences", None) is not None:
            app.state.preferences.close()
