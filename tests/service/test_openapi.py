"""The OpenAPI document, held against a running server by Schemathesis."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.service.conftest import DIGITS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy
    from schemathesis import Case, CheckContext, Response

    from tests.service.running import Server

# How many times as many examples as usual.
EFFORT = int(os.environ.get("CROUPIER_FUZZ_EFFORT", "1"))
EXAMPLES = 12
LOOPS = st.sampled_from(["digits", "scaled", "trained", "watching", "nowhere"])
# All that Schemathesis has for single requests, but two. Not everything that is valid by its schema
# is accepted: ids must be unique, rewards within a loop's range. And keys are left out on purpose
# elsewhere, in test_keys.py.
CHECKS: list[Callable[[CheckContext, Response, Case[Any]], bool | None]] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
    missing_required_header,
]


@pytest.fixture(scope="module")
def document(shared: Server) -> dict[str, Any]:
    described: dict[str, Any] = shared.get("/openapi.json").json
    return described


def cases(document: dict[str, Any], url: str) -> dict[str, SearchStrategy[Case[Any]]]:
    """A strategy of requests for every operation, valid by its schema and not."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    # A list that is too long by its schema may be too long for a body first.
    negative = schema.config.checks.negative_data_rejection
    negative.expected_statuses = [*negative.expected_statuses, "413"]
    found = {}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        modes = [GenerationMode.POSITIVE]
        if operation.body:
            modes.append(GenerationMode.NEGATIVE)
        found[operation.label] = st.one_of(
            [operation.as_strategy(generation_mode=mode) for mode in modes]
        )
    return found


def exercise(server: Server, strategy: SearchStrategy[Case[Any]]) -> Counter[int]:
    """Ask for what a strategy makes up, check every answer, and count their statuses."""
    statuses: Counter[int] = Counter()
    headers = {"x-api-key": server.key, "Ocp-Apim-Subscription-Key": DIGITS_KEY}

    @settings(
        max_examples=EFFORT * EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy, LOOPS)
    def ask(case: Case[Any], loop: str) -> None:
        if "loop" in case.path_parameters:
            case.path_parameters["loop"] = loop
        response = case.call_and_validate(headers=headers, checks=CHECKS)
        statuses[response.status_code] += 1

    run: Callable[[], None] = ask
    run()
    return statuses


def test_every_answer_is_as_the_document_says(
    shared: Server,
    document: dict[str, Any],
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    seen = {
        label: exercise(shared, strategy) for label, strategy in cases(document, shared.url).items()
    }
    assert len(seen) == sum(len(path) for path in document["paths"].values())
    for label, statuses in seen.items():
        # Every operation was reached, and nothing was the server's fault.
        assert set(statuses) & {200, 201, 204, 400}, (label, statuses)
        assert not any(status >= 500 for status in statuses), (label, statuses)
    total: Counter[int] = sum(seen.values(), Counter())
    assert {200, 201, 204, 400, 404} <= set(total)
    for status, count in sorted(total.items()):
        record_testsuite_property(f"schemathesis: {status}", count)
