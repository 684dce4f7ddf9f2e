"""A server of a small random model on loopback, in this process, and clients of it."""

import base64
import dataclasses
import http.client
import io
import json
import threading
import time

import numpy as np
import openai
import soundfile

from stepaudio_jax.errors import RunError
from stepaudio_jax.generation import LoadedModel
from stepaudio_jax.models import unstack_layers
from stepaudio_jax.serving import EngineSettings, ServingSettings
from stepaudio_jax.serving.server import Server, bind, build_model
from tests.generation.small_model import BYTES, CONFIG, peaked_parameters
from tests.models.random_model import FLOAT32

NAME = "small"
# A short encoder has a single shape to compile; clips of up to 1.28 s are enough here.
SLOT_TOKENS = 640
SERVED_CONFIG = dataclasses.replace(
    CONFIG,
    encoder=dataclasses.replace(CONFIG.encoder, positions=64),
    decoder=dataclasses.replace(CONFIG.decoder, max_positions=SLOT_TOKENS),
)
ENGINE = EngineSettings(
    slots=4,
    slot_tokens=SLOT_TOKENS,
    prefill_chunk=32,
    steps=4,
    prefix_cache_gb=0.1,
    audio_cache_gb=0.1,
)


def served_parameters():
    """The weights of a model that never ends its turn by itself."""
    parameters = peaked_parameters(SERVED_CONFIG)
    parameters["decoder"]["lm_head"]["kernel"][:, BYTES.special.eot] = 0
    return parameters


def small_model():
    """The model in the layout of an engine."""
    parameters = unstack_layers(served_parameters())
    return LoadedModel(NAME, SERVED_CONFIG, parameters, BYTES, FLOAT32)


class RunningServer:
    """A server in a thread.

    Attributes:
        address: its host and port.
        model: what it serves first.
        server: the server.
    """

    def __init__(self, settings=None, models=None, routers=()):
        settings = settings or ServingSettings(port=0, max_queue=64)
        self.settings = dataclasses.replace(settings, port=0)
        self.models = models or [build_model(NAME, small_model(), ENGINE)]
        self.model = self.models[0]
        self.server = Server(self.models, self.settings, routers=routers)
        listener = bind(self.settings)
        self.address = listener.getsockname()[:2]
        self.exit_code = self.error = None
        self._thread = threading.Thread(target=self._run, args=(listener,))
        self._thread.start()

    def _run(self, listener):
        try:
            self.exit_code = self.server.run(listener)
        except RunError as error:
            self.error = error

    def wait_until_ready(self):
        """Waits for the server; returns the answers of /health before it was ready."""
        before = []
        while True:
            try:
                status, body = self.get("/health")
            except ConnectionError:
                time.sleep(0.02)
                continue
            if status == 200:
                return before
            before.append((status, body))
            assert body["status"] == "starting"
            time.sleep(0.05)

    def stop(self):
        """Stops the server, and waits until its threads have ended."""
        self.server.stop()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def client(self, **options):
        """A client of OpenAI's library, which does not try again."""
        host, port = self.address
        options = {"api_key": "none", "max_retries": 0, "timeout": 300, **options}
        return openai.OpenAI(base_url=f"http://{host}:{port}/v1", **options)

    def get(self, path, **headers):
        """Returns status and JSON (or text) of an answer."""
        return self.request("GET", path, headers=headers)[:2]

    def request(self, method, path, body=None, headers=None):
        """Returns status, JSON (or text), and headers of an answer."""
        connection = http.client.HTTPConnection(*self.address, timeout=300)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read().decode()
            try:
                return response.status, json.loads(content), dict(response.headers)
            except ValueError:
                return response.status, content, dict(response.headers)
        finally:
            connection.close()

    def post(self, body, path="/v1/chat/completions"):
        """Sends a body, JSON unless it is bytes; returns status and JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, {"Content-Type": "application/json"})[:2]

    def metric(self, name, label=""):
        """Returns a figure of /metrics, the sum of those with a label, such as 'status="200"'."""
        _, text = self.get("/metrics")
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.split("{")[0].split(" ")[0] == name and label in line
        )


def wave_bytes(seconds, seed=0, rate=16_000):
    """A WAV file: noise under a tone."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(rate * seconds)) / rate
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 3000) * time_s)
    wave += 0.05 * rng.normal(size=time_s.size)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.astype(np.float32), rate, format="WAV")
    return buffer.getvalue()


def base64_wave(seconds, seed=0):
    return base64.b64encode(wave_bytes(seconds, seed)).decode()


def audio_part(seconds, seed=0):
    data = base64_wave(seconds, seed)
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def user(*parts):
    """A user's turn: words as `str`, parts as they are."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}
