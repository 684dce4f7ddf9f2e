"""Runs the application on uvicorn until the process is told to stop."""

from fastapi import FastAPI

from stepaudio_jax.serving.app import create_app
from stepaudio_jax.serving.settings import ServingSettings


def serve(settings: ServingSettings) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit code."""
    return run(create_app(settings), settings)


def run(app: FastAPI, settings: ServingSettings) -> int:
    """Runs an application on the address of its settings; returns the exit code."""
    import uvicorn

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    uvicorn.Server(config).run()
    return 0
