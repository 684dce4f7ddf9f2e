"""`/docs`: what the server answers, from its own description, in one page without scripts."""

import html
import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

REF_TEMPLATE = "#/components/schemas/{model}"

_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { border-bottom: 1px solid #8886;
text-align: left; padding: .25rem .5rem; vertical-align: top } code, pre { font-size: .9em }
pre { overflow-x: auto; padding: .5rem; background: #8882 } h2 { margin-top: 2rem }
:root { color-scheme: light dark }
"""
_EXAMPLE = """\
curl %sv1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -d '{"messages": [{"role": "user", "content": "Hello"}], "stream": true}'
"""


def docs_router(app: FastAPI, bodies: Sequence[type[BaseModel]]) -> APIRouter:
    """Returns the route of the page that describes an application.

    Args:
        app: the application, whose description then has the parts of all bodies.
        bodies: the models of bodies that routes read themselves.
    """
    router = APIRouter(include_in_schema=False)
    describe = app.openapi

    def with_bodies() -> dict[str, Any]:
        schema = describe()
        parts = schema.setdefault("components", {}).setdefault("schemas", {})
        for kind in bodies:
            parts |= kind.model_json_schema(ref_template=REF_TEMPLATE).get("$defs", {})
        return schema

    app.openapi = with_bodies  # type: ignore[method-assign]

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi()), headers=_HEADERS)

    return router


def body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Returns the description of a body that a route reads itself."""
    schema = kind.model_json_schema(ref_template=REF_TEMPLATE)
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def render_docs(schema: dict[str, Any]) -> str:
    """Returns the page of an OpenAPI description."""
    sections = [
        _operation(method, path, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>API</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>API of this server</h1><p>It speaks OpenAI's chat protocol, so OpenAI's clients work"
        " with it: their <code>base_url</code> is this address with <code>/v1</code>. The same"
        " description for programs is at <a href=/openapi.json>/openapi.json</a>.</p>"
        f"<pre>{html.escape(_EXAMPLE % 'http://localhost:8000/')}</pre>{''.join(sections)}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    rows = [
        f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(_kind(value))}"
        f"<td>{html.escape(value.get('description', ''))}"
        for name, value in body.get("schema", {}).get("properties", {}).items()
    ]
    table = f"<table><tr><th>key<th>value<th>{''.join(rows)}</table>" if rows else ""
    title = html.escape(f"{method.upper()} {path}")
    return f"<h2><code>{title}</code></h2><p>{html.escape(operation['summary'])}</p>{table}"


def _kind(value: dict[str, Any]) -> str:
    """Returns a short description of what a key may hold."""
    if "anyOf" in value:
        kinds = [_kind(item) for item in value["anyOf"] if item.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in value or "const" in value:
        return " or ".join(json.dumps(item) for item in value.get("enum", [value.get("const")]))
    if "$ref" in value:
        return str(value["$ref"]).rpartition("/")[2]
    kind = str(value.get("type", "any"))
    limits = [
        f"{sign} {value[key]:g}"
        for key, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if key in value
    ]
    return f"{kind} {', '.join(limits)}".strip()
