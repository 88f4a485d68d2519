"""The configuration: one typed YAML file, checked as a whole before anything starts.

Unknown keys are refused, and all problems are reported at once, each as one sentence with its place
and what to do.
"""

from __future__ import annotations

import base64
import datetime
import difflib
import os
import re
import ssl
import types
import typing
import zoneinfo
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from hearth_gateway.secrets import SecretError, named_secret, read_secret, shown_path

# Most tokens one answer of the model may have. Source, read 2026-11-21: the model pages under
# platform.claude.com/docs/en/models ("Max output"). A model that is not listed needs
# `max_output_tokens` in the configuration: a guessed ceiling either cuts answers or is refused.
KNOWN_MAX_OUTPUT_TOKENS = {
    "claude-haiku-4-5-20251001": 64_000,
    "claude-opus-4-6": 128_000,
    "claude-sonnet-4-5-20250929": 64_000,
}
DEMO_MAX_OUTPUT_TOKENS = 1_000

_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Name = Annotated[str, Field(pattern=_NAME)]
TokenName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
# Strict: `true` is no 1, and "5" is text. A whole number is still taken where a fraction may stand.
Whole = Annotated[int, Field(strict=True)]
Fraction = Annotated[float, Field(strict=True)]
Seconds = Annotated[Fraction, Field(gt=0, le=86_400)]
# Ceilings far above anything in use. Sums of what they bound fit into the store's 64 bits.
MAX_REQUESTS_PER_MINUTE = 1_000_000
MAX_TOKENS_PER_DAY = 10**15
MAX_OUTPUT_TOKENS = 10_000_000
MAX_PROMPT_TOKENS = 10**9
Money = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6)]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class ServerConfig(_Section):
    """Where the service listens, and its limits."""

    bind: str = Field(default="127.0.0.1:8080", description="host:port of the API and the chat page.")
    metrics_bind: str = Field(default="127.0.0.1:9090", description="host:port of /metrics; keep users away from it.")
    max_open_requests: Whole = Field(default=256, ge=1, le=4096, description="Answers that may be written at a time.")
    max_body_bytes: Whole = Field(default=33_554_432, ge=1024, le=268_435_456, description="Largest request body; vendors allow 32 MiB.")
    drain_s: Seconds = Field(default=120, description="How long SIGTERM waits for open answers before it cuts them.")
    heartbeat_s: Seconds = Field(
        default=0.5,
        le=15,
        description="Longest silence on an open stream. Also how soon a client that left is noticed.",
    )
    headers_after_s: Seconds = Field(
        default=10,
        description=(
            "A stream whose first word is not there yet gets its response headers after this time, so "
            "that proxies in between do not give up. Later errors are then events inside the stream."
        ),
    )
    handover_s: Fraction = Field(
        default=0,
        ge=0,
        le=60,
        description=(
            "After SIGTERM requests are still taken for this time, each with `Connection: close` and with readiness down, so "
            "that a load balancer moves everybody to another process without a refusal. 0 refuses at once."
        ),
    )


class TokensConfig(_Section):
    """The credentials of programs and of the chat page."""

    dir: str = Field(description="Directory with one file a token; the file's name is the token's name.")
    proxy: list[TokenName] = Field(
        default=[],
        description="Tokens of the sign-in proxy, which speaks for the person it names. Two may be valid at once, for rotation.",
    )
    end_users: list[TokenName] = Field(
        default=[], description="Tokens of programs that may name the person they ask for, in the header x-hearth-end-user."
    )


class AnthropicProviderConfig(_Section):
    """Anthropic's native Messages API."""

    name: Name
    kind: Literal["anthropic"]
    base_url: str = Field(default="https://api.anthropic.com", description="Address without /v1.")
    api_key_file: str = Field(description="File that holds the API key and nothing else.")
    ca_file: str | None = Field(default=None, description="PEM file with certificate authorities to trust beside the machine's own.")


class OpenAIProviderConfig(_Section):
    """A server that speaks OpenAI's Chat Completions API: LiteLLM, vLLM, Ollama, a vendor."""

    name: Name
    kind: Literal["openai"]
    base_url: str = Field(description="Address without /v1.")
    api_key_file: str | None = Field(default=None, description="File that holds the API key and nothing else; none for a server without.")
    ca_file: str | None = Field(default=None, description="PEM file with certificate authorities to trust beside the machine's own.")
    usage_includes_cache: bool = Field(
        default=True, description="Whether prompt_tokens counts cached tokens too, as OpenAI and LiteLLM do."
    )
    fetch_images: bool = Field(
        default=False,
        description="Fetch https images here and send their bytes, for models that take no addresses (Bedrock).",
    )
    litellm_extensions: bool = Field(
        default=True,
        description="The server takes LiteLLM's cache_control and thinking_blocks; they are sent only when a caller gives them.",
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="The field that limits an answer; OpenAI's own newer models know the longer one only."
    )


class DemoProviderConfig(_Section):
    """Fixed sentences, no key, no network."""

    name: Name
    kind: Literal["demo"]


ProviderConfig = Annotated[AnthropicProviderConfig | OpenAIProviderConfig | DemoProviderConfig, Field(discriminator="kind")]
KINDS = ("anthropic", "openai", "demo")


class TargetConfig(_Section):
    """One provider that can serve an alias."""

    provider: str = Field(description="Name of an entry of `providers`.")
    model: str = Field(min_length=1, max_length=200, description="The vendor's own name for the model.")
    max_output_tokens: Whole | None = Field(
        default=None, ge=1, le=MAX_OUTPUT_TOKENS, description="Ceiling for one answer. Needed for models the gateway does not know."
    )
    sampling: bool | None = Field(default=None, description="Whether it takes temperature and top_p. Known for Anthropic's models.")
    reasoning: Literal["none", "budget", "adaptive", "effort"] | None = Field(
        default=None,
        description="How it is asked to reason: budget or adaptive at Anthropic, effort at OpenAI. Known for Anthropic's models.",
    )
    later_system: bool | None = Field(
        default=None, description="Whether it takes system messages in mid-conversation. Known for Anthropic's models."
    )


class EndpointConfig(_Section):
    """One provider that can serve an alias of embeddings or images."""

    provider: str = Field(description="Name of an entry of `providers`, of kind openai.")
    model: str = Field(min_length=1, max_length=200, description="The provider's own name for the model.")


class TimeoutsConfig(_Section):
    """Seconds."""

    connect_s: Seconds = Field(default=5, description="Name look-up, TCP and TLS together.")
    first_token_s: Seconds = Field(
        default=30, description="From the start of an attempt to its first content, or to the start of reasoning."
    )
    idle_s: Seconds = Field(default=60, description="Silence in an answer that has begun.")
    total_s: Seconds = Field(default=600, description="The whole answer, all attempts together.")


class BreakerConfig(_Section):
    """When a provider's model is left alone, and for how long. One breaker for each provider and model."""

    failures: Whole = Field(default=3, ge=1, le=100, description="Faults in a row, without an answer between, that open the breaker.")
    window_s: Seconds = Field(default=60, description="Faults further apart than this do not add up.")
    open_s: Seconds = Field(default=10, description="How long it stays open before one request may probe; doubles up to max_open_s.")
    max_open_s: Seconds = Field(default=300, description="Longest pause, also when the vendor's Retry-After asks for more.")


class LimitsConfig(_Section):
    """Ceilings of one person or program; none = no ceiling. Money in US dollars."""

    requests_per_minute: Whole | None = Field(default=None, ge=1, le=MAX_REQUESTS_PER_MINUTE, description="Requests in any 60 seconds.")
    tokens_per_day: Whole | None = Field(
        default=None, ge=1, le=MAX_TOKENS_PER_DAY, description="Tokens of prompts and answers together, by calendar day."
    )
    money_per_day_usd: Money | None = Field(default=None, description="By calendar day.")
    money_per_month_usd: Money | None = Field(default=None, description="By calendar month.")


class HouseLimitsConfig(_Section):
    """The cap of the whole house."""

    money_per_month_usd: Money | None = Field(default=None, description="By calendar month, everybody together.")


class AllLimitsConfig(_Section):
    """Who may spend how much."""

    time_zone: str = Field(default="UTC", description="Where days and months begin, such as Europe/Berlin.")
    soft_share: Fraction = Field(default=0.8, gt=0, le=1, description="Share of a ceiling at which a soft limit is reported.")
    person: LimitsConfig = LimitsConfig()
    program: LimitsConfig = LimitsConfig()
    programs: dict[str, LimitsConfig] = Field(default={}, description="By token name; replaces `program` for that token.")
    house: HouseLimitsConfig = HouseLimitsConfig()
    unpriced: Literal["count", "refuse"] = Field(
        default="count",
        description="A model without a price, asked by somebody with a limit on money: `count` lets it in and counts it as unpriced "
        "(limits on tokens and requests hold), `refuse` answers 403.",
    )


class RatesConfig(_Section):
    """US dollars for a million tokens."""

    input_usd: Money
    output_usd: Money
    cache_read_usd: Money | None = Field(default=None, description="Default: a tenth of input_usd.")
    cache_write_5m_usd: Money | None = Field(default=None, description="Default: 1.25 times input_usd.")
    cache_write_1h_usd: Money | None = Field(default=None, description="Default: twice input_usd.")
    image_usd: Money | None = Field(default=None, description="One generated image.")
    long_prompt: LongPromptConfig | None = Field(default=None, description="Other rates for requests with a long prompt.")


class LongPromptConfig(_Section):
    """The rates of a whole request whose prompt is longer than that."""

    # Not strict: the built-in prices are read as text, so that none of them passes through a float.
    above_tokens: Annotated[int, BeforeValidator(_no_bool)] = Field(
        ge=1, le=MAX_PROMPT_TOKENS, description="Tokens of the prompt, cached ones too."
    )
    input_usd: Money
    output_usd: Money
    cache_read_usd: Money | None = Field(default=None, description="Default: a tenth of input_usd.")
    cache_write_5m_usd: Money | None = Field(default=None, description="Default: 1.25 times input_usd.")
    cache_write_1h_usd: Money | None = Field(default=None, description="Default: twice input_usd.")


class PriceConfig(RatesConfig):
    """What one served model costs, in US dollars for a million tokens. Wins over the built-in price."""

    provider: str = Field(description="Name of an entry of `providers`.")
    model: str = Field(min_length=1, max_length=200, description="The vendor's own name for the model.")
    source: str = Field(min_length=1, max_length=500, description="Where the price was read.")
    date: datetime.date = Field(description="When it was read.")


class MetricsConfig(_Section):
    """How people appear in the metrics."""

    person_label: Literal["opaque", "alias", "email"] = Field(default="opaque", description="Form of the label `person`.")
    max_people: Whole = Field(default=50, ge=0, le=1000, description="People with a label of their own; the others share `other`.")


class PrivacyConfig(_Section):
    """All false means: nobody but its owner can ever open a saved chat."""

    admin_chat_access: bool = False
    admin_export: bool = False
    community_sharing: bool = False
    operator_public_key_file: str | None = Field(
        default=None, description="Needed before one of the flags may be true: new conversations are sealed to this key as well."
    )


class Config(_Section):
    """Configuration of hearth-gateway."""

    server: ServerConfig = ServerConfig()
    database_url: str = Field(
        default="sqlite:////var/lib/hearth/hearth.db",
        description="sqlite:/// and the path of the file, or postgresql://user@host:port/database; for a Unix socket "
        "postgresql://user@/database?host=/run/postgresql. Several replicas need PostgreSQL.",
    )
    database_password_file: str | None = Field(
        default=None, description="File that holds PostgreSQL's password and nothing else; none where the server asks for none."
    )
    tokens: TokensConfig
    providers: list[ProviderConfig] = Field(min_length=1)
    models: dict[str, Annotated[list[TargetConfig], Field(min_length=1)]] = Field(
        min_length=1, description="Names that callers use, each with its providers in order of preference."
    )
    embedding_models: dict[str, Annotated[list[EndpointConfig], Field(min_length=1)]] = Field(
        default={}, description="Names for POST /v1/embeddings, like `models`."
    )
    image_models: dict[str, Annotated[list[EndpointConfig], Field(min_length=1)]] = Field(
        default={}, description="Names for POST /v1/images/generations, like `models`."
    )
    system_prompts: dict[str, Annotated[str, Field(min_length=1, max_length=20_000)]] = Field(
        default={}, description="By name of `models`: put before the caller's own system prompt, and shown to the person."
    )
    timeouts: TimeoutsConfig = TimeoutsConfig()
    breaker: BreakerConfig = BreakerConfig()
    limits: AllLimitsConfig = AllLimitsConfig()
    prices: list[PriceConfig] = []
    ledger_detail_days: Whole = Field(default=30, ge=1, le=366, description="After this, rows of requests become sums of days.")
    metrics: MetricsConfig = MetricsConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    pseudonym_key_file: str | None = Field(
        default=None,
        description="File with the key (16 characters or more) that turns a person into what vendors see. Without it a key is "
        "made once and kept in the database.",
    )

    def max_output_tokens(self, target: TargetConfig) -> int | None:
        """The ceiling of a target, or None if nobody has said it."""
        if target.max_output_tokens is not None:
            return target.max_output_tokens
        kinds = {provider.name: provider.kind for provider in self.providers}
        if kinds.get(target.provider) == "demo":
            return DEMO_MAX_OUTPUT_TOKENS
        return KNOWN_MAX_OUTPUT_TOKENS.get(target.model)

    def database_password(self) -> str | None:
        """What PostgreSQL is given, or None. Raises ``SecretError``, which begins with the key of the configuration."""
        file = self.database_password_file
        return named_secret("database_password_file", file) if file else None

    def pseudonym_key(self) -> bytes | None:
        """The configured key, or None: then the database has one. Raises ``SecretError`` like ``database_password``."""
        file = self.pseudonym_key_file
        return named_secret("pseudonym_key_file", file, MIN_PSEUDONYM_KEY).encode() if file else None


@dataclass(frozen=True, slots=True)
class Problem:
    """``path`` is where, such as ``providers[0].api_key_file``; ``text`` is what, and the fix.

    ``reads`` are the other places it was found by: with a wrong value in one of them it may be no problem at all.
    """

    path: str
    text: str
    reads: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class ConfigError(Exception):
    """All that is wrong with a configuration.

    ``rest`` is what can still be checked, with stand-ins at the places ``doubtful``; None if nothing can.
    """

    def __init__(self, problems: list[Problem], rest: Config | None = None, doubtful: Sequence[str] = ()) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems
        self.rest = rest
        self.doubtful = doubtful


def load_config(path: Path) -> Config:
    """Read and check a file. Raises ``ConfigError``. Does not look at the files it names."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem("", f"the file cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem("", "the file is not UTF-8 text")]) from None
    return parse_config(text)


def parse_config(text: str) -> Config:
    """Like ``load_config``, from the YAML itself."""
    try:
        data = yaml.load(text, _StrictLoader)  # noqa: S506  (a SafeLoader that also refuses double keys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError([Problem(where, f"this is not valid YAML: {error.problem}")]) from None
    except yaml.YAMLError:
        raise ConfigError([Problem("", "this is not valid YAML")]) from None
    except RecursionError:
        raise ConfigError([Problem("", "this is nested too deeply to be a configuration")]) from None
    if not isinstance(data, dict):
        raise ConfigError([Problem("", "the file must hold keys such as `tokens:` and `providers:`")])
    config, problems, doubtful = _validated(data)
    if config is not None:
        problems += _certain(_cross_checks(config), doubtful)
    if problems or config is None:
        raise ConfigError(problems, config, doubtful)
    return config


def load_with_files(path: Path) -> Config:
    """Like ``load_config``, but looks at the files it names too, also when something else is wrong."""
    try:
        config = load_config(path)
    except ConfigError as found:
        if found.rest is None:
            raise
        known = [*found.doubtful, *(problem.path for problem in found.problems)]
        raise ConfigError(found.problems + _certain(check_files(found.rest), known)) from None
    problems = check_files(config)
    if problems:
        raise ConfigError(problems, config)
    return config


def warnings(config: Config, today: datetime.date) -> list[str]:
    """Sentences on what is allowed and yet hardly meant. Does not look at the files the configuration names."""
    found = []
    for index, price in enumerate(config.prices):
        # The day of the house may be one ahead. No problem: a machine without a clock would not start.
        if price.date > today + datetime.timedelta(days=1):
            found.append(f"prices[{index}].date: {price.date} is in the future, so the price will not count as old")
    return found


def check_files(config: Config) -> list[Problem]:
    """Look at the secret and certificate files a configuration names."""
    problems = _token_directory_problems(config.tokens.dir)
    if config.database_password_file is not None:
        problems += _secret_problems("database_password_file", config.database_password_file)
    if config.pseudonym_key_file is not None:
        problems += _secret_problems("pseudonym_key_file", config.pseudonym_key_file, MIN_PSEUDONYM_KEY)
    if config.privacy.operator_public_key_file is not None:
        problems += _public_key_problems(config.privacy.operator_public_key_file)
    for index, provider in enumerate(config.providers):
        if isinstance(provider, DemoProviderConfig):
            continue
        where = f"providers[{index}]"
        if provider.api_key_file is not None:
            problems += _secret_problems(f"{where}.api_key_file", provider.api_key_file)
        if provider.ca_file is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(provider.ca_file)
            except (OSError, ValueError):  # ssl.SSLError is an OSError
                problems.append(Problem(f"{where}.ca_file", f"{shown_path(provider.ca_file)} is not a readable PEM file of certificates"))
    return problems


MIN_PSEUDONYM_KEY = 16


def _token_directory_problems(path: str) -> list[Problem]:
    shown = shown_path(path, "a directory")
    try:
        with os.scandir(path):
            os.stat(os.path.join(path, "."))  # who may list it and not enter it can read no file in it
    except PermissionError:
        return [Problem("tokens.dir", f"{shown} cannot be read: permission denied; let the user of the service list and enter it")]
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return [Problem("tokens.dir", f"{shown} is not a directory; make it, with one file a token")]
    except OSError as error:
        return [Problem("tokens.dir", f"{shown} cannot be read: {error.strerror}")]
    return []


def _secret_problems(where: str, path: str, shortest: int = 1) -> list[Problem]:
    try:
        read_secret(Path(path), shortest)
    except SecretError as problem:
        return [Problem(where, f"{shown_path(path)} {problem}")]
    return []


_PUBLIC_KEY = re.compile(r"\s*-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*\Z")
_MAX_PUBLIC_KEY_BYTES = 16_384


def _public_key_problems(path: str) -> list[Problem]:
    """A key that nobody can seal to would be found when the first conversation is lost. Not a proof that it is a good one."""
    where, shown = "privacy.operator_public_key_file", shown_path(path)
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(_MAX_PUBLIC_KEY_BYTES)
    except (OSError, ValueError):
        return [Problem(where, f"{shown} is not a readable text file")]
    if "PRIVATE KEY" in text:
        return [Problem(where, f"{shown} holds a private key; the gateway must never have it: give the public one")]
    found = _PUBLIC_KEY.match(text)
    try:
        key = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except ValueError:
        key = b""
    # Every such key is one DER sequence; the shortest in use (Ed25519, X25519) has 44 bytes.
    if len(key) < 44 or key[0] != 0x30:
        return [Problem(where, f"{shown} holds no public key in PEM form (-----BEGIN PUBLIC KEY-----)")]
    return []


_NOT_IN_A_HOST = re.compile(r"""[\s/?#@\[\]\\<>"]""")


def parse_bind(value: str) -> tuple[str, int]:
    """Split ``host:port``. Raises ``ValueError`` with a sentence."""
    host, colon, port = value.rpartition(":")
    if not colon or not host:
        raise ValueError("must be host:port, such as 127.0.0.1:8080")
    host = host.removeprefix("[").removesuffix("]")
    try:
        host.encode("idna")  # as `getaddrinfo` does: an empty label, or one of more than 63 characters
        valid = bool(host) and host.isprintable() and not _NOT_IN_A_HOST.search(host)
    except UnicodeError:
        valid = False
    if not valid:
        raise ValueError("this is no name of a host; write one such as gateway.lan, or an address")
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("the port must be a number from 0 to 65535")
    return host, int(port)


# --- checks that need more than one field ------------------------------------------------------


def _cross_checks(config: Config) -> Iterator[Problem]:
    server = config.server
    for key, value in (("bind", server.bind), ("metrics_bind", server.metrics_bind)):
        try:
            parse_bind(value)
        except ValueError as error:
            yield Problem(f"server.{key}", f"{error}")
    if _clash(server.bind, server.metrics_bind):
        yield Problem("server.metrics_bind", "must differ from server.bind", ("server.bind",))
    yield from _database_checks(config)
    names: list[str] = []
    for index, provider in enumerate(config.providers):
        if provider.name in names:
            yield Problem(f"providers[{index}].name", f"{provider.name!r} is used twice; rename one")
        names.append(provider.name)
        if not isinstance(provider, DemoProviderConfig):
            yield from _url_checks(f"providers[{index}].base_url", provider.base_url)
    for alias, targets in config.models.items():
        if not re.match(_NAME, alias):
            yield Problem(f"models.{alias}", "a model name has lower-case letters, digits, `.`, `_` and `-` only")
        for index, target in enumerate(targets):
            where = f"models.{alias}[{index}]"
            if target.provider not in names:
                yield _unknown_provider(f"{where}.provider", target.provider, names)
            elif config.max_output_tokens(target) is None:
                yield Problem(
                    f"{where}.max_output_tokens",
                    f"is needed: the ceiling of {target.model!r} is not known here; the vendor's page has it",
                    (f"{where}.model", f"{where}.provider", *_provider_places("kind", names), *_provider_places("name", names)),
                )
    yield from _reasoning_checks(config)
    yield from _endpoint_checks(config, names)
    for name in config.system_prompts:
        if name not in config.models:
            yield Problem(f"system_prompts.{name}", f"no model is called {name!r}{suggest(name, list(config.models))}", ("models",))
    seen: dict[tuple[str, str], int] = {}
    for index, price in enumerate(config.prices):
        first = seen.setdefault((price.provider, price.model), index)
        if first != index:
            reads = tuple(f"prices[{at}].{key}" for at in (first, index) for key in ("provider", "model"))
            yield Problem(
                f"prices[{index}]", f"{price.model!r} of {price.provider!r} has a price in prices[{first}] already; keep one", reads
            )
        if price.provider not in names:
            yield _unknown_provider(f"prices[{index}].provider", price.provider, names)
    yield from _limit_checks(config)
    yield from _token_checks(config.tokens)
    yield from _privacy_checks(config.privacy)
    timeouts = config.timeouts
    for part in ("connect_s", "first_token_s", "idle_s"):
        if getattr(timeouts, part) > timeouts.total_s:
            yield Problem(f"timeouts.{part}", "must not be longer than timeouts.total_s", ("timeouts.total_s",))


def _clash(one: str, other: str) -> bool:
    """Whether two listeners want the same port of the same address."""
    try:
        (first, port), (second, other_port) = parse_bind(one.lower()), parse_bind(other.lower())
    except ValueError:
        return False
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (first, second)}
    # [::] takes in IPv4 too; 0.0.0.0 takes in no IPv6.
    wide = "::" in hosts or ("0.0.0.0" in hosts and not any(":" in host for host in hosts))  # noqa: S104  (compared, not listened on)
    return port == other_port != 0 and (wide or len(hosts) == 1)


def _unknown_provider(where: str, name: str, names: list[str]) -> Problem:
    return Problem(where, f"no provider is called {name!r}{suggest(name, names)}", _provider_places("name", names))


def _provider_places(key: str, names: list[str]) -> tuple[str, ...]:
    return tuple(f"providers[{index}].{key}" for index in range(len(names)))


def _reasoning_checks(config: Config) -> Iterator[Problem]:
    kinds: dict[str, str] = {provider.name: provider.kind for provider in config.providers}
    ways = {"anthropic": ("none", "budget", "adaptive"), "openai": ("none", "effort")}
    for alias, targets in config.models.items():
        for index, target in enumerate(targets):
            possible = ways.get(kinds.get(target.provider, ""))
            if target.reasoning is not None and possible is not None and target.reasoning not in possible:
                reads = (
                    f"models.{alias}[{index}].provider",
                    *_provider_places("kind", list(kinds)),
                    *_provider_places("name", list(kinds)),
                )
                yield Problem(f"models.{alias}[{index}].reasoning", f"must be {_or(possible)} for this provider", reads)


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _endpoint_checks(config: Config, names: list[str]) -> Iterator[Problem]:
    kinds = {provider.name: provider.kind for provider in config.providers}
    for section in ("embedding_models", "image_models"):
        for alias, endpoints in getattr(config, section).items():
            if not re.match(_NAME, alias):
                yield Problem(f"{section}.{alias}", "a model name has lower-case letters, digits, `.`, `_` and `-` only")
            for index, endpoint in enumerate(endpoints):
                where = f"{section}.{alias}[{index}].provider"
                if endpoint.provider not in kinds:
                    yield _unknown_provider(where, endpoint.provider, names)
                elif kinds[endpoint.provider] != "openai":
                    reads = (*_provider_places("kind", names), *_provider_places("name", names))
                    yield Problem(where, "must be a provider of kind 'openai'; the others have no such models", reads)


def _limit_checks(config: Config) -> Iterator[Problem]:
    zone = config.limits.time_zone
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        yield Problem("limits.time_zone", f"{zone!r} is not a time zone; write one such as Europe/Berlin or UTC")
    for name in config.limits.programs:
        if name in config.tokens.proxy:
            text = "is the token of the sign-in proxy; limits of people are under limits.person"
            yield Problem(f"limits.programs.{name}", text, ("tokens.proxy",))


def _token_checks(tokens: TokensConfig) -> Iterator[Problem]:
    for name in tokens.end_users:
        if name in tokens.proxy:
            yield Problem("tokens.end_users", f"{name!r} is under tokens.proxy already; a token is one or the other")


def _privacy_checks(privacy: PrivacyConfig) -> Iterator[Problem]:
    for flag in ("admin_chat_access", "admin_export", "community_sharing"):
        if getattr(privacy, flag) and privacy.operator_public_key_file is None:
            yield Problem(
                f"privacy.{flag}",
                "is refused without privacy.operator_public_key_file: saved chats are encrypted in the browser, so there is "
                "nothing to open unless new ones are also sealed to a key of the operator; leave it false, or give that key",
                ("privacy.operator_public_key_file",),
            )


def _database_checks(config: Config) -> Iterator[Problem]:
    # By hand: SQLAlchemy knows better, but loading it doubles the time of `check-config`.
    url = config.database_url
    scheme, _, path = url.partition("://")
    path = path.removeprefix("/")
    if "://" not in url:
        yield Problem("database_url", "must look like sqlite:////var/lib/hearth/hearth.db or postgresql://hearth@db:5432/hearth")
    elif scheme == "postgresql":
        yield from _postgresql_checks(url)
    elif not scheme.startswith("sqlite"):
        yield Problem("database_url", "must begin with sqlite:/// or postgresql://")
    elif scheme != "sqlite" or not path or path == ":memory:" or path.endswith("/"):
        yield Problem("database_url", "must name a file, such as sqlite:////var/lib/hearth/hearth.db")
    elif not url.startswith("sqlite:///"):
        yield Problem(
            "database_url", "must have three slashes before the path, so four if that begins with one: sqlite:////var/lib/hearth/hearth.db"
        )
    elif "?" in path:
        yield Problem("database_url", "must end with the path of the file; remove the `?` and what follows it")
    elif not path.isprintable():
        yield Problem("database_url", "has unprintable characters in the path of the file; remove them or rename it")
    elif config.database_password_file is not None:
        yield Problem("database_password_file", "is of no use with SQLite; remove it", ("database_url",))


# libpq's settings that say where the server is and how it is trusted. Others are the gateway's own business.
_POSTGRESQL_OPTIONS = ("host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs")


def _postgresql_checks(url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        valid = parts.port != 0 and len(parts.path) > 1 and "/" not in parts.path[1:] and not parts.fragment
    except ValueError:
        yield Problem("database_url", "must look like postgresql://user@host:5432/database")
        return
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.password is not None or "password" in options:
        yield Problem("database_url", "must hold no password; write it to a file and name that in database_password_file")
    if not valid or not parts.username or not (parts.hostname or options.get("host")):
        yield Problem("database_url", "must look like postgresql://user@host:5432/database")
    for name in options:
        if name not in (*_POSTGRESQL_OPTIONS, "password"):
            yield Problem("database_url", f"{name!r} is no option this gateway knows{suggest(name, list(_POSTGRESQL_OPTIONS))}")


def _url_checks(where: str, url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        # urlsplit takes nearly everything for a host.
        clean = url.isprintable() and not re.search(r"""[\s<>"{}|\\^`]""", url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and clean
    except ValueError:
        valid = False
    if not valid:
        yield Problem(where, "must be an address such as https://api.anthropic.com")
    elif parts.username or parts.password or parts.query or parts.fragment:
        yield Problem(where, "must hold no user, password, query or fragment; keys come from files")
    elif parts.path.rstrip("/").endswith("/v1"):
        yield Problem(where, "must end before /v1; the gateway adds the path itself")


# --- what is left of a configuration with errors, so that all of it is checked at once ------------

_STAND_IN = "stand-in-for-what-is-wrong"
_GONE = object()
_ROUNDS = 3  # a stand-in can be refused itself: a list that lost its only key


def _validated(data: dict[Any, Any]) -> tuple[Config | None, list[Problem], list[str]]:
    """The configuration, what pydantic says is wrong, and the places where the configuration holds a stand-in."""
    try:
        return Config.model_validate(data), [], []
    except ValidationError as error:
        errors = error.errors()
    problems = [_problem(item) for item in errors]
    doubtful: list[str] = []
    for _ in range(_ROUNDS):
        # Wrong keys last: until then their values are at the places that are named.
        for item in sorted(errors, key=lambda item: item["loc"][-1] == "[key]"):
            data, places = _without(data, item)
            doubtful += places
        try:
            return Config.model_validate(data), problems, doubtful
        except ValidationError as error:
            errors = error.errors()
    return None, problems, doubtful


def _certain(problems: Iterable[Problem], doubtful: Sequence[str]) -> list[Problem]:
    """Without what may only follow from a problem that is known already."""
    return [
        problem
        for problem in problems
        if not any(_is_at_or_below(problem.path, place) for place in doubtful)
        and not any(_is_at_or_below(read, place) or _is_at_or_below(place, read) for read in problem.reads for place in doubtful)
    ]


def _is_at_or_below(path: str, place: str) -> bool:
    return path == place or path.startswith((f"{place}.", f"{place}["))


def _without(data: Any, error: Any) -> tuple[Any, list[str]]:
    """``data`` with a default or a stand-in instead of what is wrong, and the places that are in doubt then."""
    loc = error["loc"]
    steps, path, section = _steps(loc), _path(loc), _section_at(loc[:-1])
    if error["type"] in ("extra_forbidden", "invalid_key"):
        # Perhaps a key that is not there was meant.
        there = _at(data, steps[:-1])
        absent = [key for key in (section.model_fields if section else ()) if not isinstance(there, dict) or key not in there]
        above = _path(loc[:-1])
        return _put(data, steps, _GONE), [f"{above}.{key}".removeprefix(".") for key in absent]
    if steps[-1] == "[key]":
        return _put(data, steps[:-1], _GONE), [_path(loc[:-2])]
    if error["type"].startswith("union_tag"):
        there = _at(data, steps)
        name = there.get("name") if isinstance(there, dict) else None
        known = isinstance(name, str) and re.match(_NAME, name)
        made = {"name": name if known else _STAND_IN, "kind": "demo"}
        return _put(data, steps, made), [f"{path}.kind"] if known else [f"{path}.kind", f"{path}.name"]
    known_field = section.model_fields.get(str(loc[-1])) if section else None
    if known_field is not None and not known_field.is_required():
        return _put(data, steps, _GONE), [path]
    annotation: Any = Config
    for step in loc:
        annotation = _child(annotation, step)
    return _put(data, steps, _stand_in(annotation)), [path]


def _at(data: Any, steps: list[int | str]) -> Any:
    for step in steps:
        data = data[_key(data, step)] if isinstance(data, dict | list) else None
    return data


def _put(data: Any, steps: list[int | str], value: Any) -> Any:
    """A copy with ``value`` at a place; what is not on the way there is shared."""
    if not steps:
        return value
    if not isinstance(data, dict | list):
        return data
    key, made = _key(data, steps[0]), data.copy()
    if len(steps) == 1 and value is _GONE and isinstance(made, dict):
        made.pop(key, None)
    else:
        made[key] = _put(data.get(key) if isinstance(data, dict) else data[key], steps[1:], value)
    return made


def _key(data: dict[Any, Any] | list[Any], step: int | str) -> Any:
    """The key itself: pydantic names one that is no text by its text."""
    return step if isinstance(data, list) or step in data else next((key for key in data if str(key) == str(step)), step)


def _stand_in(annotation: Any) -> Any:
    """The shortest value that is valid for a type of this file."""
    annotation = _bare(annotation)
    if _is_union(annotation):
        annotation = DemoProviderConfig
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {key: _stand_in(part.annotation) for key, part in annotation.model_fields.items() if part.is_required()}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return [_stand_in(arguments[0])]
    if origin is dict:
        return {_STAND_IN: _stand_in(arguments[1])}
    if origin is Literal:
        return arguments[0]
    return {str: _STAND_IN, datetime.date: datetime.date(2000, 1, 1)}.get(annotation, 1)


# --- one sentence for each of pydantic's error types --------------------------------------------


_KINDS_TEXT = "'anthropic', 'openai' or 'demo'"


def _problem(error: Any) -> Problem:
    loc = error["loc"]
    kind, context = error["type"], error.get("ctx", {})
    section = _section_at(loc[:-1])
    path = _path(loc)
    if loc[-1] == "[key]":
        return Problem(_path(loc[:-2]), f"the key {loc[-2]} must be text; put it in quotes")
    if kind in ("extra_forbidden", "invalid_key"):
        path = _path((*loc[:-1], str(loc[-1])))
        known = list(section.model_fields) if section else []
        return Problem(path, f"unknown key{suggest(str(loc[-1]), known)}")
    if kind == "missing":
        return Problem(path, f"is missing{_describe(section, loc)}")
    if kind == "union_tag_not_found":
        return Problem(f"{path}.kind", f"is missing; it must be {_KINDS_TEXT}")
    if kind == "union_tag_invalid":
        return Problem(f"{path}.kind", f"must be {_KINDS_TEXT}, not {context['tag']!r}")
    if kind == "string_pattern_mismatch":
        return Problem(path, "must have lower-case letters, digits, `.`, `_` and `-` only, at most 63")
    if kind == "too_short":
        return Problem(path, "must have at least one entry")
    wanted = {
        "string_type": "must be text",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "float_parsing": "must be a number",
        "decimal_type": "must be a number",
        "decimal_parsing": "must be a number",
        "list_type": "must be a list",
        "dict_type": "must hold keys and values",
        "model_type": "must hold keys and values",
        "model_attributes_type": "must hold keys and values",
    }.get(kind)
    if kind.startswith("date"):
        wanted = "must be a date such as 2026-11-21"
    if wanted is None:
        # Only the limits are left (greater_than, less_than_equal, …): pydantic's words are good there.
        message = str(error["msg"])
        wanted = message[:1].lower() + message[1:].replace("input should", "must")
        wanted = wanted.replace("input should", "must")
    return Problem(path, wanted + _describe(section, loc))


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in _steps(loc)).removeprefix(".")


def _steps(loc: tuple[int | str, ...]) -> list[int | str]:
    """The keys and indexes in the file. Pydantic also names the member of a union that it tried."""
    steps = []
    annotation: Any = Config
    for step in loc:
        if not (step in KINDS and _is_union(annotation)):
            steps.append(step)
        annotation = _child(annotation, step)
    return steps


def _section_at(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The section class that ``loc`` lies in, to know its fields."""
    annotation: Any = Config
    for step in loc:
        annotation = _child(annotation, step)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _child(annotation: Any, step: int | str) -> Any:
    """The type found one step deeper: a field of a section, an item of a list, a member of a union."""
    annotation = _bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(step))
        return _bare(field.annotation) if field else None
    if _is_union(annotation):
        for member in typing.get_args(annotation):
            if step in typing.get_args(member.model_fields["kind"].annotation):
                return member
        return None
    arguments = typing.get_args(annotation)
    return _bare(arguments[-1]) if arguments else None


def _bare(annotation: Any) -> Any:
    """Without ``Annotated`` and ``| None``."""
    if typing.get_origin(annotation) is Annotated:
        return _bare(typing.get_args(annotation)[0])
    members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
    return _bare(members[0]) if _is_union(annotation) and len(members) == 1 else annotation


def _describe(section: type[BaseModel] | None, loc: tuple[int | str, ...]) -> str:
    field = section.model_fields.get(str(loc[-1])) if section and loc else None
    return f" ({field.description.rstrip('.')})" if field and field.description else ""


def suggest(word: str, known: list[str]) -> str:
    """The end of a sentence about a ``word`` that is not among ``known``."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if known else ""


_MERGE_TAG = "tag:yaml.org,2002:merge"
_SCALARS = {"bool": "`true` or `false`", "float": "number", "int": "whole number", "timestamp": "date"}


_SURROGATE = re.compile("[\ud800-\udfff]")


class _StrictLoader(yaml.SafeLoader):
    """YAML lets a second key of the same name win in silence. Here it is an error.

    Merge keys (`<<:`) are refused for the same reason: with them a key that is there twice is meant.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # PyYAML knows a date or number by its form, and lets Python's own error out when there is none like it.
            kind = _SCALARS.get(node.tag.removeprefix("tag:yaml.org,2002:"), "value")
            problem = f"{str(node.value)[:40]!r} is not a valid {kind}; put it in quotes if it is meant as text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        if isinstance(value, str) and _SURROGATE.search(value):
            problem = "an escape such as \\ud83d is half a character; write the character itself"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE_TAG:
                problem = "merge keys (<<) are not supported; write the keys out, or use an alias (*name) for a whole value"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int):
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"the key {key!r} is there twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors and for the Ansible role that renders it."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "hearth-gateway configuration"
    return schema
