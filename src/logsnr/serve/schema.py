"""The OpenAPI schema: who may call a route, how errors look, and nothing that the server does not do."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from logsnr.serve.rights import scope_of

_ERRORS = {
    "400": "What was asked for cannot be done",
    "401": "A token is needed, or this one is not valid",
    "403": "The token does not allow that",
    "404": "There is no such thing",
    "413": "The request is too long",
    "429": "Too much for now; Retry-After says when",
    "503": "Not now; Retry-After says when",
}


class Complaint(BaseModel):
    """What went wrong: for people, and by a code for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: Complaint


def describe(app: FastAPI) -> None:
    """Let an application describe itself: FastAPI's schema with tokens, roles and the errors that there are."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema is not None
        found = own()
        if not known:
            _add(found, {(r.path, m.lower()): r for rs in app.state.routers for r in rs.routes for m in r.methods})
        return found

    app.openapi = openapi  # type: ignore[method-assign]


def _add(found: dict[str, Any], routes: dict[tuple[str, str], Any]) -> None:
    schemas = found["components"].setdefault("schemas", {})
    error = ErrorResponse.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {**error.pop("$defs"), "ErrorResponse": error}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    for path, methods in found["paths"].items():
        for method, told in methods.items():
            scope = scope_of(routes[path, method])
            told["security"] = [{"token": []}] if scope != "public" else [{}, {"token": []}]
            told["description"] = "For everyone." if scope == "public" else f"For the role {scope}."
            told["responses"].pop("422", None)
            told["responses"] |= {status: {"description": text, "content": content} for status, text in _ERRORS.items()}
