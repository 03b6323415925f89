"""Schemathesis over the OpenAPI schema: whatever is sent, the server says what is wrong, and never breaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case
from served import GENERATIONS, bearer, serving

from logsnr.serve.config import Limits, ServeConfig

MANY = Limits(anonymous_per_minute=10**6, requests_per_minute=10**6, failures=10**6, images_per_day=10**9)
EXAMPLES = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def test_no_request_breaks_the_server(tmp_path: Path) -> None:
    told = ServeConfig(
        model="fashion", database=tmp_path / "s.db", hosts=("testserver",), limits=MANY, max_steps=2, max_images=1
    )
    statuses: dict[str, set[int]] = {}
    with serving(told) as served:
        schema = schemathesis.openapi.from_asgi("/openapi.json", served.app)
        tokens = (served.admin, served.auditor)
        for found in schema.get_all_operations():
            statuses.setdefault(found.ok().path, set()).update(answers(found.ok(), tokens))
        assert served.app.state.store.verify() is None
    assert len(statuses) > 12
    assert {200, 400} <= statuses[GENERATIONS]
    assert 201 in statuses["/v1/keys"]


def answers(operation: APIOperation, tokens: Sequence[str]) -> set[int]:
    """The statuses of drawn requests to one operation, each checked."""
    statuses = set()

    @settings(max_examples=15, phases=[Phase.explicit, Phase.generate], **EXAMPLES)
    @given(case=operation.as_strategy())
    def check(case: Case) -> None:
        for token in tokens:
            response = case.call(headers={**(case.headers or {}), **bearer(token)})
            statuses.add(response.status_code)
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    check()
    return statuses
