"""The scripted server as a program of its own, to be killed.

python -m tests.serving.page.scripted_server PORT FOLDER PAIRS
"""

import sys

import uvicorn

from stepaudio_jax.serving import ServingSettings
from stepaudio_jax.serving.app import create_app
from tests.serving.page.scripted_api import ScriptedModel

if __name__ == "__main__":
    port, folder, pairs = sys.argv[1:]
    settings = ServingSettings(port=int(port), preferences_folder=folder, pairs=pairs)
    app = create_app(settings, routers=[ScriptedModel().router()])
    uvicorn.run(app, port=settings.port, log_level="error")
