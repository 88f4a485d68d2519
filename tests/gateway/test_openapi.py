"""The description against a real process: schemathesis makes requests from it, right and wrong ones, and
checks each answer. No fault of ours (5xx), no status, content type, header or shape nobody described."""

from __future__ import annotations

import random
from typing import Any

import pytest
import schemathesis
from gateway_support import TOKEN, Gateway
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from hearth_gateway.api.description import openapi_document

# Requests of each kind for each operation. The whole file has to stay below a minute on two cores.
EXAMPLES = 15
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
    checks.unsupported_method,
    checks.ignored_auth,
]
MODELS = {"/v1/embeddings": "embed", "/v1/images/generations": "draw"}
SCHEMA: Any = schemathesis.openapi.from_dict(openapi_document())
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]
# Where nothing is sent, or any text may be, nothing can be sent wrong.
CASES = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
CASES += [(operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if "process" not in operation.tags]


def with_a_model(case: Any) -> None:
    """Random names are all 404. Most requests get a model that answers, or nothing behind it would be tried."""
    if isinstance(case.body, dict) and "model" in case.body and random.Random(repr(case.body)).random() < 0.8:
        case.body["model"] = MODELS.get(case.path, "sonnet")
    elif case.path == "/v1/models/{model}" and case.headers:
        case.path_parameters["model"] = "sonnet"


@pytest.mark.parametrize(("operation", "kind"), CASES, ids=[f"{operation.label} {kind.value}" for operation, kind in CASES])
def test_every_answer_is_described(shared: Gateway, operation: Any, kind: GenerationMode) -> None:
    tried = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=kind))
    def run(case: Any) -> None:
        nonlocal tried
        tried += 1
        with_a_model(case)
        case.call_and_validate(base_url=shared.url, headers={"x-api-key": TOKEN}, checks=CHECKS, timeout=20)

    run()
    assert tried
