"""The configuration: every fault has a fixture, and every message says where, what and the fix."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from hearth_gateway.app import create_app
from hearth_gateway.cli import main
from hearth_gateway.config import ConfigError, check_files, json_schema, parse_bind, parse_config
from hearth_gateway.secrets import SecretError

GOOD = """
server: {bind: 127.0.0.1:8080, metrics_bind: 127.0.0.1:9090}
database_url: sqlite:////var/lib/hearth/hearth.db
tokens: {dir: /run/hearth/tokens}
providers:
  - {name: anthropic, kind: anthropic, base_url: https://api.anthropic.com, api_key_file: /run/hearth/keys/anthropic}
  - {name: demo, kind: demo}
models:
  sonnet: [{provider: anthropic, model: claude-sonnet-4-5-20250929}, {provider: demo, model: demo}]
timeouts: {connect_s: 5, first_token_s: 30, idle_s: 60, total_s: 600}
"""
DEMO = "providers: [{name: demo, kind: demo}]\nmodels: {demo: [{provider: demo, model: demo}]}\n"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return [str(problem) for problem in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_the_example_of_the_documentation_is_good() -> None:
    config = parse_config(GOOD)
    assert config.max_output_tokens(config.models["sonnet"][0]) == 64_000
    assert config.max_output_tokens(config.models["sonnet"][1]) == 1_000
    jsonschema.validate(yaml.safe_load(GOOD), json_schema())


def test_defaults_are_filled_in() -> None:
    text = changed("timeouts: {connect_s: 5, first_token_s: 30, idle_s: 60, total_s: 600}\n", "")
    text = text.replace("server: {bind: 127.0.0.1:8080, metrics_bind: 127.0.0.1:9090}\n", "")
    config = parse_config(text)
    assert (config.timeouts.total_s, config.server.bind, config.server.drain_s) == (600, "127.0.0.1:8080", 120)


@pytest.mark.parametrize(
    "url", ["postgresql://hearth@db:5432/hearth", "postgresql://hearth@/hearth?host=/run/postgresql", "postgresql://hearth@db/hearth?sslmode=verify-full"]
)
def test_postgresql_by_host_and_by_socket(url: str) -> None:
    assert parse_config(changed("sqlite:////var/lib/hearth/hearth.db", url)).database_url == url


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("metrics_bind:", "metric_bind:", "server.metric_bind: unknown key; did you mean 'metrics_bind'?"),
        ("timeouts:", "timeout:", "timeout: unknown key; did you mean 'timeouts'?"),
        ("api_key_file:", "api_key:", "providers[0].api_key: unknown key; did you mean 'api_key_file'?"),
        ("{name: demo, kind: demo}", "{name: demo, kind: demo, model: x}",
         "providers[1].model: unknown key; known are name, kind"),
        ("{provider: demo, model: demo}", "{provider: demo, modle: demo}",
         "models.sonnet[1].modle: unknown key; did you mean 'model'?"),
        ("tokens: {dir: /run/hearth/tokens}", "",
         "tokens: is missing"),
        ("{dir: /run/hearth/tokens}", "{}",
         "tokens.dir: is missing (Directory with one file a token; the file's name is the token's name)"),
        ("kind: demo", "kind: dmeo", "providers[1].kind: must be 'anthropic', 'openai' or 'demo', not 'dmeo'"),
        (", kind: demo", "", "providers[1].kind: is missing; it must be 'anthropic', 'openai' or 'demo'"),
        ("{name: demo, kind", "{name: Demo Two, kind",
         "providers[1].name: must have lower-case letters, digits, `.`, `_` and `-` only, at most 63"),
        ("{name: demo, kind", "{name: anthropic, kind", "providers[1].name: 'anthropic' is used twice; rename one"),
        ("{provider: demo,", "{provider: dmo,",
         "models.sonnet[1].provider: no provider is called 'dmo'; did you mean 'demo'?"),
        ("model: claude-sonnet-4-5-20250929", "model: claude-next",
         "models.sonnet[0].max_output_tokens: is needed: the ceiling of 'claude-next' is not known here; "
         "the vendor's page has it"),
        ("  sonnet:", "  Sonnet 4:",
         "models.Sonnet 4: a model name has lower-case letters, digits, `.`, `_` and `-` only"),
        ("connect_s: 5", "connect_s: soon",
         "timeouts.connect_s: must be a number (Name look-up, TCP and TLS together)"),
        ("connect_s: 5", "connect_s: 0",
         "timeouts.connect_s: must be greater than 0 (Name look-up, TCP and TLS together)"),
        ("idle_s: 60", "idle_s: 601", "timeouts.idle_s: must not be longer than timeouts.total_s"),
        ("bind: 127.0.0.1:8080", "bind: localhost", "server.bind: must be host:port, such as 127.0.0.1:8080"),
        ("bind: 127.0.0.1:8080", "bind: 127.0.0.1:99999", "server.bind: the port must be a number from 0 to 65535"),
        ("metrics_bind: 127.0.0.1:9090", "metrics_bind: 127.0.0.1:8080",
         "server.metrics_bind: must differ from server.bind"),
        ("bind: 127.0.0.1:8080, metrics_bind: 127.0.0.1:9090", "bind: '0.0.0.0:80', metrics_bind: '127.0.0.1:80'",
         "server.metrics_bind: must differ from server.bind"),
        ("bind: 127.0.0.1:8080, metrics_bind: 127.0.0.1:9090", "bind: 'Localhost:80', metrics_bind: '127.0.0.1:80'",
         "server.metrics_bind: must differ from server.bind"),
        ("bind: 127.0.0.1:8080, metrics_bind: 127.0.0.1:9090", "bind: '192.0.2.1:80', metrics_bind: '[::]:80'",
         "server.metrics_bind: must differ from server.bind"),
        ("https://api.anthropic.com,", "'http://exa mple',",
         "providers[0].base_url: must be an address such as https://api.anthropic.com"),
        ("https://api.anthropic.com,", "'http://example/ x',",
         "providers[0].base_url: must be an address such as https://api.anthropic.com"),
        ("https://api.anthropic.com,", "'http://exa|mple',",
         "providers[0].base_url: must be an address such as https://api.anthropic.com"),
        ("sqlite:////var/lib/hearth/hearth.db", "mysql://db/hearth", "database_url: must begin with sqlite:/// or postgresql://"),
        ("sqlite:////var/lib/hearth/hearth.db", "postgresql://db/hearth",
         "database_url: must look like postgresql://user@host:5432/database"),
        ("sqlite:////var/lib/hearth/hearth.db", "postgresql://hearth@db:port/hearth",
         "database_url: must look like postgresql://user@host:5432/database"),
        ("sqlite:////var/lib/hearth/hearth.db", "postgresql://hearth@/hearth",
         "database_url: must look like postgresql://user@host:5432/database"),
        ("sqlite:////var/lib/hearth/hearth.db", "postgresql://hearth:secret@db/hearth",
         "database_url: must hold no password; write it to a file and name that in database_password_file"),
        ("sqlite:////var/lib/hearth/hearth.db", "postgresql://hearth@db/hearth?ssl_mode=require",
         "database_url: 'ssl_mode' is no option this gateway knows; did you mean 'sslmode'?"),
        ("sqlite:////var/lib/hearth/hearth.db", "sqlite:////x.db\ndatabase_password_file: /x",
         "database_password_file: is of no use with SQLite; remove it"),
        ("sqlite:////var/lib/hearth/hearth.db", "'sqlite://'",
         "database_url: must name a file, such as sqlite:////var/lib/hearth/hearth.db"),
        ("sqlite:////var/lib/hearth/hearth.db", "sqlite:////var/lib/hearth/",
         "database_url: must name a file, such as sqlite:////var/lib/hearth/hearth.db"),
        ("sqlite:////var/lib/hearth/hearth.db", "sqlite://var/lib/hearth.db",
         "database_url: must have three slashes before the path, so four if that begins with one: sqlite:////var/lib/hearth/hearth.db"),
        ("sqlite:////var/lib/hearth/hearth.db", "sqlite:////x.db?timeout=abc",
         "database_url: must end with the path of the file; remove the `?` and what follows it"),
        ("sqlite:////var/lib/hearth/hearth.db", "sqlite:///file:x?mode=memory&uri=true",
         "database_url: must end with the path of the file; remove the `?` and what follows it"),
        ("sqlite:////var/lib/hearth/hearth.db", '"sqlite:////x\\0.db"',
         "database_url: has unprintable characters in the path of the file; remove them or rename it"),
        ("metrics_bind: 127.0.0.1:9090", "metrics_bind: gateway..lan:9090",
         "server.metrics_bind: this is no name of a host; write one such as gateway.lan, or an address"),
        ("metrics_bind: 127.0.0.1:9090", "metrics_bind: 'a b:1'",
         "server.metrics_bind: this is no name of a host; write one such as gateway.lan, or an address"),
        ("metrics_bind: 127.0.0.1:9090", "metrics_bind: '[]:1'",
         "server.metrics_bind: this is no name of a host; write one such as gateway.lan, or an address"),
        ("sqlite:////var/lib/hearth/hearth.db", "hearth.db",
         "database_url: must look like sqlite:////var/lib/hearth/hearth.db or postgresql://hearth@db:5432/hearth"),
        ("https://api.anthropic.com,", "https://api.anthropic.com/v1/,",
         "providers[0].base_url: must end before /v1; the gateway adds the path itself"),
        ("https://api.anthropic.com,", "api.anthropic.com,",
         "providers[0].base_url: must be an address such as https://api.anthropic.com"),
        ("https://api.anthropic.com,", "https://key@api.anthropic.com,",
         "providers[0].base_url: must hold no user, password, query or fragment; keys come from files"),
        ("  sonnet: [{provider: anthropic, model: claude-sonnet-4-5-20250929}, {provider: demo, model: demo}]",
         "  sonnet: []", "models.sonnet: must have at least one entry"),
        ("tokens: {dir", "tokens: {dir: /x}\ntokens: {dir", "line 5, column 1: this is not valid YAML: "
         "the key 'tokens' is there twice"),
    ],
)  # fmt: skip
def test_each_fault_is_one_sentence_with_its_place(old: str, new: str, expected: str) -> None:
    assert expected in problems(changed(old, new))


PRICE = "prices: [{provider: demo, model: x, input_usd: 1, output_usd: 1, source: here, date: 2026-11-21"
LONG = PRICE + ", long_prompt: {above_tokens: %s, input_usd: 1, output_usd: %s}}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limits: {person: {requests_per_minute: 99999999999999999999}}",
         "limits.person.requests_per_minute: must be less than or equal to 1000000 (Requests in any 60 seconds)"),
        ("limits: {programs: {x: {tokens_per_day: 1000000000000001}}}",
         "limits.programs.x.tokens_per_day: must be less than or equal to 1000000000000000 "
         "(Tokens of prompts and answers together, by calendar day)"),
        ("limits: {person: {requests_per_minute: true}}",
         "limits.person.requests_per_minute: must be a whole number (Requests in any 60 seconds)"),
        ("limits: {program: {tokens_per_day: '5'}}",
         "limits.program.tokens_per_day: must be a whole number (Tokens of prompts and answers together, by calendar day)"),
        ("limits: {person: {money_per_day_usd: true}}", "limits.person.money_per_day_usd: must be a number (By calendar day)"),
        ("limits: {soft_share: '0.5'}", "limits.soft_share: must be a number (Share of a ceiling at which a soft limit is reported)"),
        ("breaker: {failures: true}",
         "breaker.failures: must be a whole number (Faults in a row, without an answer between, that open the breaker)"),
        ("breaker: {open_s: '5'}",
         "breaker.open_s: must be a number (How long it stays open before one request may probe; doubles up to max_open_s)"),
        ("ledger_detail_days: '30'", "ledger_detail_days: must be a whole number (After this, rows of requests become sums of days)"),
        (LONG % (10**10, 1),
         "prices[0].long_prompt.above_tokens: must be less than or equal to 1000000000 (Tokens of the prompt, cached ones too)"),
        (LONG % ("true", 1), "prices[0].long_prompt.above_tokens: must be a whole number (Tokens of the prompt, cached ones too)"),
        (LONG % (1, "much"), "prices[0].long_prompt.output_usd: must be a number"),
        (PRICE.replace("2026-11-21", "soon") + "}]", "prices[0].date: must be a date such as 2026-11-21 (When it was read)"),
    ],
)  # fmt: skip
def test_numbers_are_numbers_that_the_store_can_hold(text: str, expected: str) -> None:
    assert problems(f"{GOOD}{text}\n") == [expected]


def test_a_ceiling_for_one_answer_has_a_ceiling() -> None:
    assert "models.sonnet[1].max_output_tokens: must be less than or equal to 10000000" in problems(
        changed("{provider: demo, model: demo}", "{provider: demo, model: demo, max_output_tokens: 10000001}")
    )[0]


def test_whole_numbers_may_stand_for_fractions_and_money_may_be_text() -> None:
    config = parse_config(GOOD + "limits: {soft_share: 1, person: {money_per_day_usd: '2.50', tokens_per_day: 1000000000000000}}\n")
    assert (config.timeouts.connect_s, config.limits.soft_share, str(config.limits.person.money_per_day_usd)) == (5, 1, "2.50")


@pytest.mark.parametrize("text", ["", "- a list", "a: [", "\tx: 1", "just words"])
def test_what_is_no_configuration(text: str) -> None:
    assert len(problems(text)) == 1


_TIMEOUTS = "line 10, column 23: this is not valid YAML: {} put it in quotes if it is meant as text"
_DATE = "line 10, column 17: this is not valid YAML: {} is not a valid date; put it in quotes if it is meant as text"
NOT_TO_BE_BUILT = {
    "timeouts: {connect_s: 0b_}": _TIMEOUTS.format("'0b_' is not a valid whole number;"),
    "timeouts: {connect_s: 0x_}": _TIMEOUTS.format("'0x_' is not a valid whole number;"),
    "timeouts: {connect_s: !!float ''}": _TIMEOUTS.format("'' is not a valid number;"),
    "timeouts: {connect_s: !!bool maybe}": _TIMEOUTS.format("'maybe' is not a valid `true` or `false`;"),
    "prices: [{date: 2026-02-30}]": _DATE.format("'2026-02-30'"),
    "prices: [{date: 0000-01-01}]": _DATE.format("'0000-01-01'"),
    "prices: [{date: !!timestamp soon}]": _DATE.format("'soon'"),
    "breaker: &b {failures: 3}\nlimits: {person: {<<: *b}}": "line 11, column 19: this is not valid YAML: merge keys (<<) are not "
    "supported; write the keys out, or use an alias (*name) for a whole value",
    '"\\ud800": 1': "line 10, column 1: this is not valid YAML: an escape such as \\ud83d is half a character; write the character itself",
    f"breaker: {'[' * 3000}{']' * 3000}": "this is nested too deeply to be a configuration",
}


@pytest.mark.parametrize("command", [["check-config"], ["serve", "--config"], ["status", "--config"], ["person", "list", "--config"]])
@pytest.mark.parametrize("text", NOT_TO_BE_BUILT, ids=lambda text: text[:30])
def test_what_yaml_cannot_build_is_a_sentence_of_every_command(tmp_path: Path, capsys: Any, command: list[str], text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(changed("timeouts: {connect_s: 5, first_token_s: 30, idle_s: 60, total_s: 600}", text))
    assert main([*command, str(file)]) == 2
    assert capsys.readouterr() == ("", f"hearth-gateway: {file}: {NOT_TO_BE_BUILT[text]}\n")


def test_an_alias_for_a_whole_value_is_fine() -> None:
    text = GOOD + "limits: {person: &ceilings {requests_per_minute: 5}, program: *ceilings}\n"
    assert parse_config(text).limits.program.requests_per_minute == 5


def test_all_problems_at_once() -> None:
    text = changed("metrics_bind:", "metric_bind:").replace("kind: demo", "kind: dmeo").replace("idle_s: 60", "idle_s: x")
    assert len(problems(text)) == 3
    text = changed("{provider: demo,", "{provider: dmo,").replace("idle_s: 60", "idle_s: 700")
    assert len(problems(text)) == 2


@pytest.mark.parametrize("binds", [
    "bind: '0.0.0.0:0', metrics_bind: '0.0.0.0:0'", "bind: '0.0.0.0:80', metrics_bind: '[::1]:80'",
    "bind: '127.0.0.1:80', metrics_bind: '127.0.0.2:80'", "bind: '0.0.0.0:80', metrics_bind: '0.0.0.0:81'",
])  # fmt: skip
def test_listeners_that_do_not_clash(binds: str) -> None:
    parse_config(changed("bind: 127.0.0.1:8080, metrics_bind: 127.0.0.1:9090", binds))


def test_one_price_for_one_model() -> None:
    one = "{provider: demo, model: x, input_usd: 1, output_usd: 1, source: here, date: 2026-11-21}"
    assert problems(f"{GOOD}prices: [{one}, {one.replace('model: x', 'model: y')}, {one}]\n") == [
        "prices[2]: 'x' of 'demo' has a price in prices[0] already; keep one"]


def test_what_is_hardly_meant_is_a_warning(files: Path, capsys: Any) -> None:
    (files / "tokens" / "home-assistant").write_text("x" * 40)
    file = files / "config.yaml"
    file.write_text(file.read_text() + PRICE.replace("2026-11-21", "2999-01-01") + "}]\n"
                    + "limits: {programs: {home-assitant: {tokens_per_day: 5}, home-assistant: {tokens_per_day: 5}}}\n")
    assert main(["check-config", "--files", str(file)]) == 0
    said = capsys.readouterr().err
    told = f"no token in {files}/tokens is called 'home-assitant'; did you mean 'home-assistant'?"
    assert f"warning: limits.programs.home-assitant: {told}" in said
    assert "warning: prices[0].date: 2999-01-01 is in the future" in said
    assert "programs.home-assistant:" not in said
    assert main(["check-config", str(file)]) == 0
    assert "home-assitant" not in capsys.readouterr().err
    (files / "tokens").rename(files / "elsewhere")
    assert main(["check-config", "--files", str(file)]) == 2
    assert "is not a directory" in capsys.readouterr().err


MANY = """
tokens: {dir: /nowhere/tokens}
providers: [{name: demo, kind: demo}, {name: near, kind: openai, base_url: 'http://near:1', api_key_file: /nowhere/key}]
models: {demo: [{provider: dmo, model: demo}]}
foo: 1
limits: {time_zone: Mars, person: {requests_per_minute: 0}}
privacy: {admin_export: true}
"""
MANY_PROBLEMS = [
    "limits.person.requests_per_minute: must be greater than or equal to 1",
    "foo: unknown key; known are ",
    "models.demo[0].provider: no provider is called 'dmo'; did you mean 'demo'?",
    "limits.time_zone: 'Mars' is not a time zone",
    "privacy.admin_export: is refused without privacy.operator_public_key_file",
]


def test_all_kinds_of_problems_at_once(tmp_path: Path, capsys: Any) -> None:
    found = problems(MANY)
    assert [text for text, start in zip(found, MANY_PROBLEMS, strict=True) if not text.startswith(start)] == []
    file = tmp_path / "config.yaml"
    file.write_text(MANY)
    for command in (["check-config", "--files", str(file)], ["serve", "--config", str(file)]):
        assert main(command) == 2
        said = [line.removeprefix(f"hearth-gateway: {file}: ") for line in capsys.readouterr().err.splitlines()]
        assert said == [
            *found,
            "tokens.dir: /nowhere/tokens is not a directory; make it, with one file a token",
            "providers[1].api_key_file: /nowhere/key does not exist",
        ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # What was meant is not there, so nothing is said of what needs it.
        ("{provider: demo, model: demo}", "{provider: dmeo, model: new, max_ouput_tokens: 5}", [
            "models.sonnet[1].max_ouput_tokens: unknown key; did you mean 'max_output_tokens'?",
            "models.sonnet[1].provider: no provider is called 'dmeo'; did you mean 'demo'?"]),
        ("{provider: demo, model: demo}", "{provider: anthropic, model: new, max_ouput_tokens: 5}", [
            "models.sonnet[1].max_ouput_tokens: unknown key; did you mean 'max_output_tokens'?"]),
        ("{provider: demo, model: demo}", "{provider: anthropic, modl: claude-opus-4-6}", [
            "models.sonnet[1].model: is missing (The vendor's own name for the model)",
            "models.sonnet[1].modl: unknown key; did you mean 'model'?"]),
        ("timeouts: {connect_s: 5, first_token_s: 30, idle_s: 60, total_s: 600}", "timeouts: {idle_s: 700, totl_s: 900}", [
            "timeouts.totl_s: unknown key; did you mean 'total_s'?"]),
        ("timeouts: {connect_s: 5, first_token_s: 30, idle_s: 60, total_s: 600}", "timeouts: {idle_s: 700, total_s: 900 s}", [
            "timeouts.total_s: must be a number (The whole answer, all attempts together)"]),
        ("timeouts:", "privacy: {admin_export: true, operator_key: /x}\ntimeouts:", [
            "privacy.operator_key: unknown key; did you mean 'operator_public_key_file'?"]),
        ("database_url: sqlite:////var/lib/hearth/hearth.db", "databse_url: postgresql://h@db/h\ndatabase_password_file: /x", [
            "databse_url: unknown key; did you mean 'database_url'?"]),
        # A provider whose name is not known may be the one that a model asks for; one of a wrong kind is not.
        ("{name: demo, kind: demo}", "{name: Demo, kind: demo}", [
            "providers[1].name: must have lower-case letters, digits, `.`, `_` and `-` only, at most 63"]),
        ("{name: demo, kind: demo}", "{nam: demo, kind: demo}", [
            "providers[1].name: is missing", "providers[1].nam: unknown key; did you mean 'name'?"]),
        ("{name: demo, kind: demo}", "demo", ["providers[1]: must hold keys and values"]),
        ("kind: demo", "kind: dmeo", ["providers[1].kind: must be 'anthropic', 'openai' or 'demo', not 'dmeo'"]),
        ("timeouts:", "embedding_models: {e: [{provider: demo, model: e}]}\ntimeouts:", [
            "embedding_models.e[0].provider: must be a provider of kind 'openai'; the others have no such models"]),
        ("  sonnet: [{", "  5: [{", ["models: the key 5 must be text; put it in quotes"]),
        ("timeouts:", "7: x\ntimeouts:", ["7: unknown key; known are server, database_url, database_password_file, tokens, providers, "
                                          "models, embedding_models, image_models, system_prompts, timeouts, breaker, limits, prices, "
                                          "ledger_detail_days, metrics, privacy, pseudonym_key_file"]),
        ("tokens: {dir: /run/hearth/tokens}", "limits: {time_zone: Mars}", [
            "tokens: is missing", "limits.time_zone: 'Mars' is not a time zone; write one such as Europe/Berlin or UTC"]),
    ],
)  # fmt: skip
def test_what_only_follows_from_a_problem_is_none(old: str, new: str, expected: list[str]) -> None:
    assert problems(changed(old, new)) == expected


def test_the_schema_refuses_what_the_program_refuses() -> None:
    for old, new in (("metrics_bind:", "metric_bind:"), ("kind: demo", "kind: dmeo"), ("connect_s: 5", "connect_s: 0")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(changed(old, new)), json_schema())


@pytest.mark.parametrize(
    ("value", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::]:8080", ("::", 8080)), ("0.0.0.0:0", ("0.0.0.0", 0)),
     ("gateway_1.lan.:80", ("gateway_1.lan.", 80)),
     ("bücher.lan:80", ("bücher.lan", 80)), ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80))],
)
def test_parse_bind(value: str, expected: tuple[str, int]) -> None:
    assert parse_bind(value) == expected


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "key").write_text("sk-ant-0123456789\n")
    (tmp_path / "config.yaml").write_text(
        GOOD.replace("/run/hearth/tokens", str(tmp_path / "tokens"))
        .replace("/run/hearth/keys/anthropic", str(tmp_path / "key"))
        .replace("/var/lib/hearth", str(tmp_path))
    )
    return tmp_path


def file_problems(files: Path) -> list[str]:
    return [str(problem) for problem in check_files(parse_config((files / "config.yaml").read_text()))]


def test_good_files(files: Path) -> None:
    assert file_problems(files) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"export KEY=sk ant", "holds spaces, line breaks or other characters that no key has"),
        (b"sk-ant-1\nsk-ant-2\n", "holds spaces, line breaks or other characters that no key has"),
        (b"\xff\xfes\x00k\x00", "holds spaces, line breaks or other characters that no key has"),
        (b"x" * 9000, "is larger than 8192 bytes, so it is not a key"),
    ],
)
def test_bad_key_files(files: Path, content: bytes | None, expected: str) -> None:
    key = files / "key"
    key.unlink()
    if content is not None:
        key.write_bytes(content)
    assert file_problems(files) == [f"providers[0].api_key_file: {key} {expected}"]


@pytest.mark.timeout(20)
def test_a_pipe_as_key_holds_up_nobody(files: Path) -> None:
    (files / "key").unlink()
    os.mkfifo(files / "key")
    assert file_problems(files) == [f"providers[0].api_key_file: {files}/key is no regular file, but a pipe or a device"]


def test_a_directory_as_key_and_no_token_directory(files: Path) -> None:
    (files / "key").unlink()
    (files / "key").mkdir()
    (files / "tokens").rmdir()
    assert file_problems(files) == [
        f"tokens.dir: {files}/tokens is not a directory; make it, with one file a token",
        f"providers[0].api_key_file: {files}/key is a directory, not a file",
    ]


def test_check_config_prints_one_sentence_each_and_exits_with_2(files: Path, capsys: Any) -> None:
    good = files / "config.yaml"
    assert main(["check-config", str(good)]) == 0
    assert capsys.readouterr() == ("", "")
    bad = files / "bad.yaml"
    bad.write_text(good.read_text().replace("metrics_bind:", "metric_bind:").replace("kind: demo", "kind: dmeo"))
    assert main(["check-config", str(bad)]) == 2
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"hearth-gateway: {bad}: providers[1].kind: must be 'anthropic', 'openai' or 'demo', not 'dmeo'",
        f"hearth-gateway: {bad}: server.metric_bind: unknown key; did you mean 'metrics_bind'?",
    ]


def test_check_config_looks_at_files_only_when_asked(files: Path, capsys: Any) -> None:
    (files / "key").unlink()
    assert main(["check-config", str(files / "config.yaml")]) == 0
    assert main(["check-config", "--files", str(files / "config.yaml")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["check-config", str(files / "none.yaml")]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VuAyEAVi7f6pQ6o8s8Qm5rD7mQq5cXn3gCw5m2T0Q1m3cZb1k=
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (PUBLIC_KEY, None),
        (None, "is not a readable text file"),
        (PUBLIC_KEY.replace("PUBLIC", "PRIVATE"), "holds a private key"),
        (PUBLIC_KEY.replace("MCow", ""), "holds no public key"),
        (PUBLIC_KEY.replace("MCow", "M=ow"), "holds no public key"),
        (PUBLIC_KEY.splitlines()[1], "holds no public key"),
        ("", "holds no public key"),
        ("sch\xf6n", "is not a readable text file"),
    ],
)
def test_the_operators_public_key(tmp_path: Path, content: str | None, problem: str | None) -> None:
    key, tokens = tmp_path / "key.pem", tmp_path / "tokens"
    tokens.mkdir()
    if content is not None:
        key.write_text(content, encoding="latin-1")
    text = changed("/run/hearth/tokens", str(tokens)).replace("api_key_file: /run/hearth/keys/anthropic", f"api_key_file: {tmp_path}/api")
    (tmp_path / "api").write_text("sk-ant-0123456789")
    found = check_files(parse_config(text + f"privacy: {{admin_export: true, operator_public_key_file: {key}}}\n"))
    assert [item.path for item in found] == (["privacy.operator_public_key_file"] if problem else [])
    assert all(str(problem) in item.text for item in found)


@pytest.mark.parametrize(("content", "problem"), [("k" * 16, ""), ("k" * 15, "is shorter than 16 characters"), ("", "is empty")])
def test_the_key_of_the_pseudonyms(tmp_path: Path, content: str, problem: str) -> None:
    key = tmp_path / "pseudonyms"
    key.write_text(content)
    text = "tokens: {dir: " + str(tmp_path) + "}\nproviders: [{name: demo, kind: demo}]\nmodels: {demo: [{provider: demo, model: demo}]}\n"
    found = check_files(parse_config(f"{text}pseudonym_key_file: {key}\n"))
    assert [str(item) for item in found] == ([f"pseudonym_key_file: {key} {problem}"] if problem else [])


# --- tokens -----------------------------------------------------------------------------------


def said_of_files(files: Path, capsys: Any, more: str = "") -> list[str]:
    """The warnings of ``check-config --files``, which finds no problem."""
    file = files / "config.yaml"
    file.write_text(file.read_text() + more)
    assert main(["check-config", "--files", str(file)]) == 0
    said: list[str] = capsys.readouterr().err.splitlines()
    return [line.removeprefix(f"hearth-gateway: {file}: warning: ") for line in said]


def test_files_that_are_no_token_are_a_warning_each(files: Path, capsys: Any) -> None:
    tokens = files / "tokens"
    for name in ("good", "bak~"):
        (tokens / name).write_text("x" * 40)
    for name, content in (("short", "abc"), ("empty", ""), ("comma", "x" * 20 + ",y"), ("spaces", "x x" * 10)):
        (tokens / name).write_text(content)
    (tokens / "..data").mkdir()  # as Kubernetes mounts a Secret
    (tokens / "dangling").symlink_to("nowhere")
    (tokens / "folder").mkdir()
    (tokens / "good.previous").write_text("")
    assert said_of_files(files, capsys) == [
        f"tokens.dir: {tokens}/{name}; it counts as no token"
        for name in (
            "bak~ has a name that no token can have (letters, digits, `.`, `_` and `-`, at most 63)",
            "comma holds a comma, which separates two credentials in a header",
            "dangling does not exist",
            "empty is empty",
            "folder is a directory, not a file",
            "good.previous is empty",
            "short is shorter than 16 characters",
            "spaces holds spaces, line breaks or other characters that no key has",
        )
    ]


def test_a_name_that_no_token_has_is_a_warning(files: Path, capsys: Any) -> None:
    tokens = files / "tokens"
    for name in ("signin", "home-assistant"):
        (tokens / name).write_text(name[0] * 40)
    (tokens / "rotated.previous").write_text("r" * 40)
    (tokens / "bad").write_text("")
    text = files / "config.yaml"
    text.write_text(text.read_text().replace("tokens}", "tokens, proxy: [sign-in, signin], end_users: [zzzzz, rotated, bad]}"))
    limits = "limits: {programs: {home-assitant: {tokens_per_day: 5}, home-assistant: {tokens_per_day: 5}}}\n"
    assert said_of_files(files, capsys, limits) == [
        f"tokens.dir: {tokens}/bad is empty; it counts as no token",
        f"tokens.proxy[0]: no token in {tokens} is called 'sign-in'; did you mean 'signin'?",
        f"tokens.end_users[0]: no token in {tokens} is called 'zzzzz'; known are home-assistant, rotated, signin",
        f"limits.programs.home-assitant: no token in {tokens} is called 'home-assitant'; did you mean 'home-assistant'?",
    ]


def test_no_token_at_all_is_a_warning(files: Path, capsys: Any) -> None:
    nobody = f"tokens.dir: no file in {files}/tokens is a valid token, so every request will be refused"
    assert said_of_files(files, capsys) == [nobody]
    (files / "tokens" / "one").write_text("x" * 40)
    assert said_of_files(files, capsys) == []


# --- files that cannot be looked at -----------------------------------------------------------


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may read everything, so for a moment this process is somebody else."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(("where", "mode"), [("tokens", 0o000), ("tokens", 0o444), ("tokens", 0o111), ("", 0o000)])
def test_a_token_directory_without_rights(where: str, mode: int, capsys: Any) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are closed to others
        house = Path(name)
        house.chmod(0o755)
        (house / "run" / "tokens").mkdir(parents=True)
        (house / "run" / "tokens" / "one").write_text("x" * 40)
        file = house / "config.yaml"
        file.write_text(f"tokens: {{dir: {house}/run/tokens}}\n{DEMO}")
        closed = house / "run" / where
        closed.chmod(mode)
        try:
            with without_rights():
                for command in (["check-config", "--files"], ["serve", "--config"]):
                    assert main([*command, str(file)]) == 2
                    assert capsys.readouterr().err == (
                        f"hearth-gateway: {file}: tokens.dir: {house}/run/tokens cannot be read: permission denied; "
                        "let the user of the service list and enter it\n")  # fmt: skip
        finally:
            closed.chmod(0o755)


SECRET_FILES = [
    "tokens.dir", "database_password_file", "pseudonym_key_file", "privacy.operator_public_key_file",
    "providers[0].api_key_file", "providers[0].ca_file",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/" + "x" * 300, '"/a\\0b"', '""', "/dev/null/x", "/proc/self/mem"])
def test_what_no_file_or_directory_can_be_is_a_problem(path: str) -> None:
    text = changed("tokens: {dir: /run/hearth/tokens}", f"tokens: {{dir: {path}}}")
    text = text.replace("sqlite:////var/lib/hearth/hearth.db", f"postgresql://h@db/h\ndatabase_password_file: {path}")
    text = text.replace("/run/hearth/keys/anthropic", f"{path}, ca_file: {path}")
    found = check_files(parse_config(f"{text}pseudonym_key_file: {path}\nprivacy: {{operator_public_key_file: {path}}}\n"))
    assert [item.path for item in found] == SECRET_FILES


# --- secrets that are not where they belong ---------------------------------------------------

PASTED = "sk-ant-api03-pasted/0123456789"


@pytest.mark.parametrize(
    ("key", "content", "problem"),
    [
        ("database_password_file", None, "does not exist"),
        ("pseudonym_key_file", None, "does not exist"),
        ("pseudonym_key_file", "k" * 15, "is shorter than 16 characters"),
    ],
)
def test_who_starts_with_a_missing_file_is_told_which(tmp_path: Path, capsys: Any, key: str, content: str | None, problem: str) -> None:
    secret, file = tmp_path / "secret", tmp_path / "config.yaml"
    if content is not None:
        secret.write_text(content)
    url = f"sqlite:///{tmp_path}/hearth.db" if key.startswith("pseudonym") else "postgresql://h@127.0.0.1:1/h"
    text = f"database_url: {url}\ntokens: {{dir: {tmp_path}}}\n{DEMO}{key}: "
    file.write_text(text + str(secret))
    assert main(["person", "list", "--config", str(file)]) == 1
    assert capsys.readouterr().err == f"hearth-gateway: {key}: {secret} {problem}\n"
    with pytest.raises(SecretError, match=f"^{key}: {secret} {problem}$"):
        create_app(parse_config(file.read_text()))
    capsys.readouterr()
    file.write_text(text + PASTED)
    assert main(["person", "list", "--config", str(file)]) == 1
    said = capsys.readouterr().err
    assert PASTED not in said and said.startswith(f"hearth-gateway: {key}: what stands there (not shown: ")


def test_a_secret_where_its_path_belongs_is_not_printed(files: Path, capsys: Any) -> None:
    file = files / "config.yaml"
    text = file.read_text().replace(f"api_key_file: {files}/key", f"api_key_file: {PASTED}, ca_file: {PASTED}")
    text = text.replace(f"dir: {files}/tokens", f"dir: {PASTED}")
    text = text.replace(f"sqlite:///{files}/hearth.db", f"postgresql://h@db/h\ndatabase_password_file: {PASTED}")
    text += f"pseudonym_key_file: {PASTED}\nprivacy: {{operator_public_key_file: {PASTED}}}\n"
    file.write_text(text)
    for command in (["check-config", "--files"], ["serve", "--config"]):
        assert main([*command, str(file)]) == 2
        said = capsys.readouterr().err
        assert PASTED not in said
        hidden = "what stands there (not shown: it may be the secret itself; write the path of a"
        assert [line.split(": ")[2] for line in said.splitlines() if hidden in line] == SECRET_FILES
        assert f"providers[0].api_key_file: {hidden} file) does not exist" in said


@pytest.mark.parametrize("path", ["/run/keys/anthropic", "./keys/anthropic", "../keys/anthropic", "~/keys/anthropic"])
def test_a_path_that_looks_like_one_is_printed(files: Path, path: str) -> None:
    file = files / "config.yaml"
    file.write_text(file.read_text().replace(f"{files}/key", path))
    assert file_problems(files) == [f"providers[0].api_key_file: {path} does not exist"]
