"""What a server says no to, in the form of the OpenAI API."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from logsnr.core.errors import InputError, LogsnrError, MissingError, UnsupportedError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


def as_refusal(error: Exception) -> RefusedError:
    """What a client is told of an error: of one that is not its own, nothing."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, InputError | MissingError | UnsupportedError):
        return RefusedError(400, "input", str(error))
    if isinstance(error, SQLAlchemyError):
        return RefusedError(503, "no_database", "the server's database cannot be used now", retry_after=5)
    return RefusedError(500, "broken", "something went wrong here")


class RefusedError(LogsnrError):
    """A request that is not answered: its status, a code for programs, and a line for people.

    ``blamed`` is the key or address whose failure it is.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        blamed: str | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after
        self.blamed = blamed

    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        found = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        return found
