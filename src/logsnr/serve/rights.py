"""Which role a route is for: it says so, or that it is public; a route that says nothing is refused by a test."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from logsnr.serve.errors import RefusedError
from logsnr.serve.store import Decision, Role


class Anybody:
    """Lets everyone pass, and gives what the gate decided; without a gate, nothing is allowed that needs a token."""

    scope = "public"

    def __call__(self, request: Request) -> Decision:
        return getattr(request.state, "decision", None) or Decision("ungated")


class Only(Anybody):
    """Lets one role pass."""

    def __init__(self, role: Role):
        self.scope = role

    def __call__(self, request: Request) -> Decision:
        decision = super().__call__(request)
        if decision.role is None:
            raise RefusedError(401, "token_needed", "this needs a token")
        if decision.role != self.scope:
            raise RefusedError(403, "role", f"this is for the role {self.scope}")
        return decision


Everyone = Annotated[Decision, Depends(Anybody())]
Admin = Annotated[Decision, Depends(Only("admin"))]
Auditor = Annotated[Decision, Depends(Only("auditor"))]


def scope_of(route: Any) -> str | None:
    """The role that a route is for, or "public"; None where it says neither."""
    needs = route.dependant.dependencies if hasattr(route, "dependant") else []
    return next((found.call.scope for found in needs if isinstance(found.call, Anybody)), None)
