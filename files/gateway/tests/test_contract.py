"""contract/ in the repository, the package and what a running application does: all three agree."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from flask.testing import FlaskClient

from hearth_gateway.api.description import openapi_document
from hearth_gateway.app import Gateway, create_app
from hearth_gateway.config import AllLimitsConfig, Config, LimitsConfig, parse_config
from hearth_gateway.contract import contract_files
from hearth_gateway.core.identity import PREVIOUS, Caller
from hearth_gateway.core.limits import LimitBook, LimitEvent, Sums
from hearth_gateway.core.metering import Leg, Settlement
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.telemetry.log import Log
from hearth_gateway.telemetry.metrics import DEFINITIONS, PROCESS_DEFINITIONS
from hearth_gateway.translate.events import Usage

CONTRACT = Path(__file__).resolve().parents[3] / "contract"
TOKEN = "token-0123456789abcdef"
AUTH = {"x-api-key": TOKEN}


def config(directory: Path) -> Config:
    (directory / "tokens").mkdir()
    (directory / "tokens" / "operator").write_text(TOKEN)
    return parse_config(f"""
        server: {{max_body_bytes: 20000}}
        database_url: sqlite:///{directory}/hearth.db
        tokens: {{dir: {directory}/tokens}}
        providers: [{{name: demo, kind: demo}}]
        models: {{demo: [{{provider: demo, model: demo}}]}}
    """)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = create_app(config(tmp_path), log=Log(io.StringIO()))
    yield gateway
    gateway.close()


@pytest.fixture
def client(gateway: Gateway) -> FlaskClient:
    return gateway.app.test_client()


@pytest.mark.skipif(not CONTRACT.is_dir(), reason="the package is tested outside its repository")
def test_a_former_token_is_spelt_as_whoever_writes_it_spells_it() -> None:
    assert yaml.safe_load((CONTRACT / "names.yml").read_text())["gateway"]["tokens"]["previous_suffix"] == PREVIOUS


@pytest.mark.skipif(not CONTRACT.is_dir(), reason="the package is tested outside its repository")
@pytest.mark.parametrize("name", sorted(contract_files()))
def test_the_repository_holds_what_the_code_says(name: str) -> None:
    text = (CONTRACT / name).read_text()
    assert text == contract_files()[name], "run: hearth-gateway write-contract contract"


def fill(gateway: Gateway) -> None:
    """One series of every metric."""
    caller, usage = Caller("app", person="ann@example.org"), Usage(1, 2, 3, 1, 4)
    for cost_nano in (5, None):
        leg = Leg("r", 1, 0.0, caller, "demo", "demo", "demo", True, usage, "ok", 1.0, 0.5)
        gateway.metrics.record(Settlement(leg, usage, "estimated", cost_nano))
    book = LimitBook(AllLimitsConfig(person=LimitsConfig(tokens_per_day=10)))
    gateway.metrics.limits_are(lambda ceiling: ceiling)
    gateway.metrics.limit_used(book.bounds(caller, time.time()).ceilings[0], Sums(tokens=5))
    gateway.metrics.limit_event(LimitEvent("person:ann@example.org", "tokens_per_day", "soft", "2026-11-21", 0.8))
    gateway.metrics.error(Kind.INTERNAL)
    gateway.metrics.failover("demo", "upstream_error")
    gateway.metrics.unknown_end("demo")


def test_exposition_is_the_contract(gateway: Gateway, client: FlaskClient) -> None:
    client.get("/healthz")
    fill(gateway)
    types: dict[str, str] = {}
    helps: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    for line in gateway.metrics.exposition().decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            types[name] = kind
        elif line.startswith("# HELP "):
            _, _, name, words = line.split(" ", 3)
            helps[name] = words
        else:
            match = re.match(r"(\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ", line)
            assert match
            found = set(re.findall(r'(\w+)="', match[2] or "")) - {"le"}
            name = match[1] if match[1] in types else line.split("{")[0].split(" ")[0]
            labels.setdefault(name, set()).update(found)
    contract = yaml.safe_load(contract_files()["metrics.yml"])["metrics"]
    assert types == {item["name"]: item["type"] for item in contract}
    assert helps == {item["name"]: item["help"] for item in contract}
    assert labels == {item["name"]: set(item["labels"]) for item in contract}
    assert len(contract) == len(DEFINITIONS) + len(PROCESS_DEFINITIONS)


def test_metric_names_follow_the_rules() -> None:
    for item in DEFINITIONS:
        assert item.name.startswith("hearth_")
        assert item.name.endswith("_total") == (item.type == "counter")


def test_routes_are_the_described_ones(gateway: Gateway) -> None:
    served = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in gateway.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }
    described = {(path, method.upper()) for path, item in openapi_document()["paths"].items() for method in item}
    assert served == described


class Described:
    """Checks each response against the description: status, content type, schema."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        self.document = openapi_document()
        self.statuses: set[tuple[str, int]] = set()

    def send(self, method: str, path: str, template: str = "", **options: Any) -> Any:
        response = self.client.open(path, method=method, **options)
        operation = self.document["paths"][template or path][method.lower()]
        described = operation["responses"].get(str(response.status_code))
        assert described is not None, f"{method} {path} answered {response.status_code}, which nobody described"
        if "$ref" in described:
            described = self.document["components"]["responses"][described["$ref"].rpartition("/")[2]]
        content = described.get("content")
        if content:
            schema = content[response.mimetype].get("schema", {})
            if response.mimetype == "application/json":
                jsonschema.validate(response.get_json(), {**schema, "components": self.document["components"]})
        self.statuses.add((path, response.status_code))
        return response


def test_every_response_of_the_page_and_the_process_is_described(gateway: Gateway, client: FlaskClient) -> None:
    described = Described(client)
    described.send("GET", "/")
    etag = described.send("GET", "/").headers["ETag"]
    assert described.send("GET", "/", headers={"If-None-Match": etag}).status_code == 304
    for name in ("app.js", "style.css", "icon.svg", "nothing.js", "..%2fapp.py"):
        described.send("GET", f"/static/{name}", "/static/{name}")
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert described.send("GET", path).status_code == 200
    for version in ({}, {"anthropic-version": "2023-06-01"}):
        for headers in (AUTH, {}, {**AUTH, "Authorization": f"Bearer {TOKEN}"}):
            described.send("GET", "/v1/models", headers={**headers, **version})
        for name in ("demo", "other"):
            described.send("GET", f"/v1/models/{name}", "/v1/models/{model}", headers={**AUTH, **version})
    gateway.lifecycle.drain()
    assert described.send("GET", "/readyz").status_code == 503
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gateway.ledger, "_thread", threading.Thread())  # one that does not run: nothing would be written
        assert described.send("GET", "/healthz").status_code == 503
        assert described.send("GET", "/readyz").get_json()["checks"]["store"] == "failing"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_every_response_of_the_chat_routes_is_described(gateway: Gateway, client: FlaskClient, monkeypatch: Any, path: str) -> None:
    described = Described(client)
    chat = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}
    for headers in (AUTH, {}, {**AUTH, "Authorization": f"Bearer {TOKEN}"}):
        described.send("POST", path, headers=headers, json=chat)
    described.send("POST", path, headers=AUTH, json={**chat, "stream": True})
    described.send("POST", path, headers=AUTH, json={**chat, "model": "x"})
    described.send("POST", path, headers=AUTH, json={**chat, "temperature": 7})
    described.send("POST", path, headers=AUTH, data=b"{", content_type="application/json")
    described.send("POST", path, headers=AUTH, data=b"x", content_type="text/plain")
    big = {**chat, "messages": [{"role": "user", "content": "x" * 30_000}]}
    described.send("POST", path, headers=AUTH, json=big)
    # Each error kind, as the route would meet it. The breaker looks away, or it would answer after the first.
    monkeypatch.setattr("hearth_gateway.core.breaker.Breakers.report", lambda *_arguments: None)
    for kind in Kind:
        if kind in (Kind.NOT_FOUND, Kind.METHOD_NOT_ALLOWED):
            continue

        def fail(_self: Any, _call: Any, kind: Kind = kind) -> Any:
            raise GatewayError(kind, "A fault.", retry_after_s=3)
            yield

        monkeypatch.setattr("hearth_gateway.providers.demo.DemoProvider.stream", fail)
        response = described.send("POST", path, headers=AUTH, json=chat)
        assert response.status_code == kind.spec.status
        assert response.headers["Retry-After"] == "3"
    gateway.lifecycle.drain()
    assert described.send("POST", path, headers=AUTH, json=chat).status_code == 503
    wanted = {int(status) for status in openapi_document()["paths"][path]["post"]["responses"]}
    assert {status for _, status in described.statuses} == wanted


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"data": b"{", "content_type": "application/json"}, 400),
        ({"data": b"\xff", "content_type": "application/json"}, 400),
        ({"json": []}, 400),
        ({"json": {"model": "demo", "messages": []}}, 400),
        ({"data": b"{}", "content_type": "text/plain"}, 415),
        ({"data": b"x" * 30_000, "content_type": "application/json"}, 413),
        ({"json": {"model": "other", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}}, 404),
    ],
)
def test_both_chat_routes_refuse_alike_each_in_its_own_form(client: FlaskClient, options: Any, status: int) -> None:
    openai = client.post("/v1/chat/completions", headers=AUTH, **options)
    anthropic = client.post("/v1/messages", headers=AUTH, **options)
    assert openai.status_code == anthropic.status_code == status
    assert set(openai.get_json()) == {"error"}
    assert set(anthropic.get_json()) == {"type", "error", "request_id"}
    said = openai.get_json()["error"]
    prefix = f"{said['param']}: " if said["param"] else ""
    assert anthropic.get_json()["error"]["message"] == prefix + said["message"]
    assert anthropic.headers["request-id"] == anthropic.get_json()["request_id"]
    assert openai.headers["x-request-id"] and "request-id" not in openai.headers


def test_every_address_answers_head_and_none_options(client: FlaskClient) -> None:
    for path, item in openapi_document()["paths"].items():
        address = path.replace("{name}", "app.js").replace("{model}", "demo")
        options = client.options(address, headers=AUTH)
        assert (options.status_code, "OPTIONS" in options.headers["Allow"]) == (405, False), path
        if "get" in item:
            got, head = client.get(address, headers=AUTH), client.head(address, headers=AUTH)
            assert (head.status_code, head.get_data()) == (got.status_code, b""), path
            assert head.headers["Content-Type"] == got.headers["Content-Type"], path


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", 404, "not_found_error"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_wrong_addresses_answer_in_the_same_form(client: FlaskClient, method: str, path: str, status: int, code: str) -> None:
    response = client.open(path, method=method)
    assert response.status_code == status
    error = response.get_json()["error"]
    assert code in (error.get("code"), error["type"])
    if status == 405:
        assert response.headers["Allow"]


def test_an_unexpected_exception_says_nothing(client: FlaskClient, gateway: Gateway, monkeypatch: Any) -> None:
    def bug(_self: Any, _call: Any) -> Any:
        raise RuntimeError("zebra words")
        yield

    monkeypatch.setattr("hearth_gateway.providers.demo.DemoProvider.stream", bug)
    chat = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
    for stream in (False, True):
        response = client.post("/v1/chat/completions", headers=AUTH, json={**chat, "stream": stream})
        assert response.status_code == 500
        assert response.get_json()["error"]["code"] == "internal_error"
        assert "zebra" not in response.get_data(as_text=True)
    logged = gateway.log._stream.getvalue()  # type: ignore[attr-defined]
    assert '"error":"RuntimeError"' in logged and "zebra" not in logged
    assert gateway.lifecycle.open == 0


def test_the_log_has_a_closed_set_of_fields() -> None:
    stream = io.StringIO()
    log = Log(stream)
    log.event("x", status=200)
    assert json.loads(stream.getvalue())["status"] == 200
    with pytest.raises(ValueError, match="no such log field: prompt"):
        log.event("x", prompt="words")
