"""The web application: access rules around everything, the API, and what is mounted beside it."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from stepaudio_jax.serving.access import install_access_rules
from stepaudio_jax.serving.chat import ChatService
from stepaudio_jax.serving.chat_protocol import ChatRequest, TokenizeRequest
from stepaudio_jax.serving.chat_routes import chat_router
from stepaudio_jax.serving.docs_page import docs_router
from stepaudio_jax.serving.errors import install_error_handlers
from stepaudio_jax.serving.page_files import mount_page
from stepaudio_jax.serving.preferences.routes import mount_preferences
from stepaudio_jax.serving.service_routes import service_router
from stepaudio_jax.serving.settings import ServingSettings


def create_app(
    settings: ServingSettings,
    *,
    service: ChatService | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """Creates the application.

    The page at `/` is the file `page/index.html` of the package; the other files of that folder are
    at `/page/NAME`. Everything but the page and `/health` asks for an API key where there are any.

    Args:
        settings: what the server allows; routes find them as `request.app.state.settings`.
        service: answers chats; None for an application of the page and `routers` alone.
        routers: further routes, such as those of preferences; their errors are `ApiError`s.
    """
    app = FastAPI(title="stepaudio_jax", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.settings = settings
    install_error_handlers(app)
    install_access_rules(app, settings)
    if service is not None:
        app.include_router(chat_router(service))
        app.include_router(service_router(service))
    app.include_router(docs_router(app, (ChatRequest, TokenizeRequest)))
    for router in routers:
        app.include_router(router)
    mount_preferences(app, settings)
    mount_page(app, () if service is None else tuple(service.models))
    return app
