"""Filters around the gateway, as a template calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.filter import gateway
from ansible_collections.homelab.hearth.plugins.module_utils import _gateway

ROOT = Path(__file__).resolve().parents[2]

SOURCE = str(ROOT / "files" / "gateway")
GOOD = """
tokens: {dir: /run/hearth/tokens}
providers: [{name: demo, kind: demo}]
models: {demo: [{provider: demo, model: demo}]}
"""


def test_what_is_right_has_no_problems() -> None:
    assert gateway.gateway_config_problems(GOOD, SOURCE) == ()


def test_every_problem_is_told_with_the_variable_it_comes_from() -> None:
    problems = gateway.gateway_config_problems(GOOD + "timeouts: {conect_s: 5}\nprivacy: {admin_export: maybe}\n", SOURCE)
    assert problems == (
        "gateway_timeouts.conect_s: unknown key; did you mean 'connect_s'?",
        "gateway_admin_export: must be a valid boolean, unable to interpret input",
    )


def test_problems_between_sections_are_seen() -> None:
    """What a JSON schema cannot say: that is why the gateway's own code looks."""
    text = GOOD.replace("provider: demo, model", "provider: dmeo, model") + "timeouts: {idle_s: 900, total_s: 600}\n"
    assert gateway.gateway_config_problems(text, SOURCE) == (
        "gateway_models.demo[0].provider: no provider is called 'dmeo'; did you mean 'demo'?",
        "gateway_timeouts.idle_s: must not be longer than timeouts.total_s",
    )


def test_a_warning_is_shown_and_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(gateway.Display, "warning", lambda self, text: shown.append(text))
    text = GOOD.replace("{name: demo, kind: demo}", "{name: x, kind: openai, base_url: 'http://192.0.2.1'}") \
        .replace("provider: demo, model: demo", "provider: x, model: of-no-price, max_output_tokens: 9")
    assert gateway.gateway_config_problems(text, SOURCE) == ()
    assert len(shown) == 1 and shown[0].startswith("gateway: ") and "of-no-price" in shown[0]


def test_a_check_that_cannot_run_is_no_approval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnsibleFilterError, match="hearth_gateway"):
        gateway.gateway_config_problems(GOOD, str(tmp_path))
    package = tmp_path / "src" / "hearth_gateway"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text("import pydantic_that_nobody_installed")
    with pytest.raises(AnsibleFilterError, match="needs pydantic_that_nobody_installed: pip install"):
        gateway.gateway_config_problems(GOOD + "# again\n", str(tmp_path))
    (package / "__main__.py").write_text("raise SystemExit(1)")
    with pytest.raises(AnsibleFilterError, match="the check broke"):
        gateway.gateway_config_problems(GOOD + "# and again\n", str(tmp_path))


def test_the_check_needs_nothing_but_what_the_controller_has() -> None:
    """The controller has pydantic and PyYAML (requirements/runtime.in); the service's other packages it has not."""
    code = "import hearth_gateway.cli, sys; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": f"{SOURCE}/src"}, capture_output=True,
                          text=True, check=True)
    assert not {"flask", "sqlalchemy", "granian", "orjson", "prometheus_client", "psycopg"} & set(done.stdout.split())
    assert "pydantic" in (ROOT / "requirements" / "runtime.in").read_text().split()


@pytest.mark.parametrize(("problem", "named"), [
    ("models.sonnet[0].provider: x", "gateway_models.sonnet[0].provider: x"),
    ("providers[2].base_url: x", "gateway_providers[2].base_url: x"),
    ("ledger_detail_days: x", "gateway_ledger_detail_days: x"),
    ("metrics.person_label: x", "gateway_metrics_person_label: x"),
    ("tokens.end_users[0]: x", "gateway_end_user_tokens[0]: x"),
    ("server.bind: x", "server.bind: x"),
    ("line 3, column 4: this is not valid YAML", "line 3, column 4: this is not valid YAML"),
    ("the file is not UTF-8 text", "the file is not UTF-8 text"),
])
def test_a_problem_names_the_variable(problem: str, named: str) -> None:
    assert _gateway.in_variables(problem) == named


ANTHROPIC = "https://api.anthropic.com"


def test_a_provider_gets_its_key_and_authorities() -> None:
    entries = [
        {"name": "anthropic", "kind": "anthropic"},
        {"name": "litellm", "kind": "openai", "base_url": "https://litellm.example.org", "egress": {"cidr": "192.0.2.0/24"}},
        {"name": "near", "kind": "openai", "base_url": "http://near:4000", "api_key_file": "/elsewhere"},
        {"name": "demo", "kind": "demo"},
        "no mapping at all",
    ]
    assert gateway.gateway_providers(entries, ["anthropic", "near"], "/keys", "/ca.pem", ANTHROPIC) == [
        {"name": "anthropic", "kind": "anthropic", "base_url": ANTHROPIC, "api_key_file": "/keys/anthropic", "ca_file": "/ca.pem"},
        {"name": "litellm", "kind": "openai", "base_url": "https://litellm.example.org", "ca_file": "/ca.pem"},
        {"name": "near", "kind": "openai", "base_url": "http://near:4000", "api_key_file": "/elsewhere"},
        {"name": "demo", "kind": "demo"},
        "no mapping at all",
    ]


@pytest.mark.parametrize(("url", "row"), [
    ("https://api.example.org", {"url": "https://api.example.org"}),
    ("https://openrouter.ai", {"url": "https://openrouter.ai"}),
    ("http://litellm.llm:4000", {"namespace": "llm", "ports": [4000]}),
    ("http://litellm.llm.svc.cluster.local:4000", {"namespace": "llm", "ports": [4000]}),
    ("https://litellm.llm.svc:4443", {"namespace": "llm", "ports": [4443]}),
    ("http://litellm:4000", {"namespace": "hearth", "ports": [4000]}),
    ("http://192.0.2.7:11434", {"cidr": "192.0.2.7/32", "ports": [11434]}),
    ("http://[2001:db8::1]:1", {"cidr": "2001:db8::1/128", "ports": [1]}),
    ("not an address", {"url": "not an address"}),
])
def test_a_providers_way_out_is_read_from_its_address(url: str, row: dict[str, object]) -> None:
    rows = gateway.gateway_egress([{"name": "x", "kind": "openai", "base_url": url}], ANTHROPIC, "", {}, "hearth")
    assert rows == [{"name": "provider x", **row}]


@pytest.mark.parametrize(("url", "port"), [
    ("http://nas.lan:11434", 11434), ("http://ollama.fritz.box:11434", 11434), ("https://ai.home.arpa", 443), ("http://NAS.Local./x", 80),
    ("https://models.house.internal:8443", 8443),
])
def test_a_name_in_the_house_needs_its_network(url: str, port: int) -> None:
    """No rule could ever match: neither that for a namespace `lan` nor that for the internet."""
    entries: list[dict[str, Any]] = [{"name": "d", "kind": "demo"}, {"name": "nas", "kind": "openai", "base_url": url}]
    [problem] = gateway.gateway_provider_problems(entries, ANTHROPIC)
    assert problem.startswith("gateway_providers[1].egress: where ") and f"ports: [{port}]" in problem
    assert "namespace" not in gateway.gateway_egress(entries, ANTHROPIC, "", {}, "hearth")[0]
    entries[1]["egress"] = {"cidr": "192.168.0.10/32", "ports": [port]}
    assert gateway.gateway_provider_problems(entries, ANTHROPIC) == []


@pytest.mark.parametrize("url", [
    "http://litellm.llm:4000", "http://litellm.home.svc:4000", "http://litellm.llm.svc.cluster.local:4000", "http://litellm:4000",
    "http://192.168.0.10:11434", "https://api.example.org", "not an address", "",
])
def test_other_names_need_none(url: str) -> None:
    assert gateway.gateway_provider_problems([{"name": "x", "kind": "openai", "base_url": url}], ANTHROPIC) == []


def test_images_of_chats_are_fetched_from_the_internet_and_from_nowhere_at_home() -> None:
    near = {"name": "near", "kind": "openai", "base_url": "http://litellm.llm:4000"}
    assert len(gateway.gateway_egress([near], ANTHROPIC, "", {}, "hearth")) == 1
    rows = gateway.gateway_egress([{**near, "fetch_images": True}, {**near, "fetch_images": True}], ANTHROPIC, "", {}, "hearth")
    four, six = gateway.egress_rules(rows)[2:]
    assert [rule["ports"] for rule in (four, six)] == [[{"protocol": "TCP", "port": 443}]] * 2
    assert four["to"][0]["ipBlock"]["cidr"] == "0.0.0.0/0" and "192.168.0.0/16" in four["to"][0]["ipBlock"]["except"]
    assert six["to"][0]["ipBlock"]["cidr"] == "::/0" and "fc00::/7" in six["to"][0]["ipBlock"]["except"]


def test_the_demo_provider_goes_nowhere_and_a_given_row_wins() -> None:
    entries = [{"name": "d", "kind": "demo"}, {"name": "a", "kind": "anthropic", "egress": {"cidr": "192.0.2.0/24", "ports": [443]}}]
    assert gateway.gateway_egress(entries, ANTHROPIC, "", {}, "hearth") == [
        {"name": "provider a", "cidr": "192.0.2.0/24", "ports": [443]}]


def test_a_database_is_opened_where_it_is_known_to_be() -> None:
    def rows(url: str, row: dict[str, Any]) -> list[dict[str, Any]]:
        return list(gateway.gateway_egress([], ANTHROPIC, url, row, "hearth"))

    assert rows("", {}) == []
    assert rows("postgresql://h@pg.data/hearth", {}) == [{"name": "database", "namespace": "data", "ports": [5432]}]
    assert rows("postgresql://h@192.0.2.3:6432/hearth", {}) == [{"name": "database", "cidr": "192.0.2.3/32", "ports": [6432]}]
    given: dict[str, Any] = {"cidr": "10.0.0.0/16", "ports": [5432]}
    assert rows("postgresql://h@db.example.org/hearth", given) == [{"name": "database", **given}]
    assert gateway.gateway_database_problems("postgresql://h@db.example.org/hearth", given, "hearth") == []
    [problem] = gateway.gateway_database_problems("postgresql://h@db.example.org/hearth", {}, "hearth")
    assert problem.startswith("gateway_database_egress: ")
    assert rows("postgresql://h@db.example.org/hearth", {}) == []


@pytest.mark.parametrize(("url", "row"), [
    ("postgresql://h@pg:5432/h?host=192.0.2.3", {"cidr": "192.0.2.3/32", "ports": [5432]}),
    ("postgresql://h@pg.data/h?port=6432", {"namespace": "data", "ports": [6432]}),
    ("postgresql://h@/h?host=pg.data&port=6432&sslmode=require", {"namespace": "data", "ports": [6432]}),
    # One place is not told: several servers, a socket, a name in the house.
    ("postgresql://h@pg:5432/h?host=192.0.2.3,192.0.2.4", None),
    ("postgresql://h@pg1,pg2:5432/h", None),
    ("postgresql://h@pg:5432/h?host=192.0.2.3&host=192.0.2.4", None),
    ("postgresql://h@pg:5432/h?host=/run/postgresql", None),
    ("postgresql://h@nas.lan/h", None),
    ("postgresql://h@pg/h?port=many", None),
])
def test_the_query_of_a_database_wins_as_in_its_client(url: str, row: dict[str, Any] | None) -> None:
    assert list(gateway.gateway_egress([], ANTHROPIC, url, {}, "hearth")) == ([{"name": "database", **row}] if row else [])
    assert len(gateway.gateway_database_problems(url, {}, "hearth")) == (0 if row else 1)


def test_keys_are_files_and_former_ones_go() -> None:
    files = gateway.gateway_key_files({"b": "key-b", "a": "key-a"}, "/keys", ["/keys/a", "/keys/old"])
    assert files == [
        {"path": "/keys/a", "secret_content": "key-a", "mode": "0600"},
        {"path": "/keys/b", "secret_content": "key-b", "mode": "0600"},
        {"path": "/keys/old", "state": "absent"},
    ]


def test_a_hash_has_the_length_that_is_asked_for_and_knows_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    whole = gateway.content_hash(str(tmp_path), ["base"], 64)
    assert len(whole) == 64
    assert gateway.content_hash([str(tmp_path)], ["base"], 12) == whole[:12]
    assert gateway.content_hash(str(tmp_path), ["other"]) != whole[:16]


def test_a_missing_directory_is_an_error_and_not_an_empty_hash(tmp_path: Path) -> None:
    with pytest.raises(AnsibleFilterError, match="content_hash"):
        gateway.content_hash(str(tmp_path / "none"))


def test_faults_of_an_egress_table_are_listed_or_raised() -> None:
    table = [{"name": "a"}, {"name": "b", "cidr": "192.0.2.0/24"}]
    assert len(gateway.egress_problems(table)) == 2
    with pytest.raises(AnsibleFilterError, match=r"row 1 \(a\).*row 2 \(b\)"):
        gateway.egress_rules(table)


PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VuAyEAVi7f6pQ6o8s8Qm5rD7mQq5cXn3gCw5m2T0Q1m3cZb1k=
-----END PUBLIC KEY-----
"""
KEYS = [
    PUBLIC_KEY, PUBLIC_KEY.replace("\n", "\r\n"), "  " + PUBLIC_KEY,
    PUBLIC_KEY.replace("PUBLIC", "PRIVATE"), PUBLIC_KEY.replace("MCow", ""), PUBLIC_KEY.replace("MCow", "M=ow"),
    PUBLIC_KEY.splitlines()[1], "not a key", PUBLIC_KEY + "more", PUBLIC_KEY.replace("MCow", "A" * 20_000),
]


def test_an_operators_key_is_refused_as_the_process_refuses_it(tmp_path: Path) -> None:
    """With the gateway's own code: the role and the process must not think differently of a key."""
    for number, text in enumerate(KEYS):
        (tmp_path / f"{number}.pem").write_bytes(text.encode())
    code = "import sys\nfrom hearth_gateway import config\nfor path in sys.argv[1:]: print(*config._public_key_problems(path))"
    files = [str(tmp_path / f"{number}.pem") for number in range(len(KEYS))]
    done = subprocess.run([sys.executable, "-c", code, *files], env={**os.environ, "PYTHONPATH": f"{SOURCE}/src"}, capture_output=True,
                          text=True, check=True)
    theirs = [line.partition(".pem ")[2] for line in done.stdout.splitlines()]
    ours = [" ".join(gateway.gateway_public_key_problems(text)).removeprefix("gateway_operator_public_key: ") for text in KEYS]
    assert ours == theirs
    assert [not problem for problem in ours] == [True] * 3 + [False] * 7
    assert gateway.gateway_public_key_problems(" ") == []


def test_a_limit_is_for_a_token_there_is() -> None:
    tokens = ["operator", "home-assistant"]
    limits: dict[str, Any] = {"programs": {"home-assistant": {}, "home-assitant": {}, "zzz": {}}}
    assert gateway.gateway_program_problems(limits, tokens) == [
        "gateway_limits.programs.home-assitant: no token is called so; did you mean 'home-assistant'?",
        "gateway_limits.programs.zzz: no token is called so; known are operator, home-assistant",
    ]
    assert gateway.gateway_program_problems({}, tokens) == gateway.gateway_program_problems({"programs": ["x"]}, tokens) == []
