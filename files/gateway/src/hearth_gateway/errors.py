"""The closed list of things that can go wrong with a request, and who owns each.

Every error that leaves the gateway is one of these kinds. A free-form exception never reaches a
client: what it says could hold a key, a path or a piece of somebody's prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Owner(Enum):
    """Who has to act. A dashboard that mixes these cannot say whether to call the vendor."""

    CALLER = "caller"
    POLICY = "policy"
    PROVIDER = "provider"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class KindSpec:
    """What a client sees for a kind, and whether another provider may be tried instead."""

    owner: Owner
    status: int
    type: str
    code: str
    fails_over: bool = False


_INVALID = "invalid_request_error"
_FORBIDDEN = "permission_error"


class Kind(Enum):
    """Value = the name used in metrics, ledger and logs."""

    INVALID_REQUEST = "invalid_request"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    MODEL_NOT_FOUND = "model_not_found"
    UNAUTHENTICATED = "unauthenticated"
    AMBIGUOUS_CREDENTIALS = "ambiguous_credentials"
    END_USER_REFUSED = "end_user_refused"
    PERSON_REFUSED = "person_refused"
    NOT_FOR_PEOPLE = "not_for_people"
    CROSS_ORIGIN = "cross_origin"
    QUOTA_EXCEEDED = "quota_exceeded"
    UNPRICED_MODEL = "unpriced_model"
    GATEWAY_BUSY = "gateway_busy"
    SHUTTING_DOWN = "shutting_down"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    INTERNAL = "internal"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    # Nobody reads it: the outcome of an answer that nobody waited for has an owner too.
    CLIENT_LEFT = "cancelled"
    PROVIDERS_UNAVAILABLE = "providers_unavailable"
    UPSTREAM_INVALID_REQUEST = "upstream_invalid_request"
    UPSTREAM_TOO_LARGE = "upstream_too_large"
    UPSTREAM_AUTH = "upstream_auth"
    UPSTREAM_MODEL_UNAVAILABLE = "upstream_model_unavailable"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_OVERLOADED = "upstream_overloaded"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    UPSTREAM_INTERRUPTED = "upstream_interrupted"

    @property
    def spec(self) -> KindSpec:
        return _SPECS[self]


_SPECS: dict[Kind, KindSpec] = {
    Kind.INVALID_REQUEST: KindSpec(Owner.CALLER, 400, _INVALID, "invalid_request"),
    Kind.NOT_FOUND: KindSpec(Owner.CALLER, 404, _INVALID, "not_found"),
    Kind.METHOD_NOT_ALLOWED: KindSpec(Owner.CALLER, 405, _INVALID, "method_not_allowed"),
    Kind.BODY_TOO_LARGE: KindSpec(Owner.CALLER, 413, _INVALID, "request_too_large"),
    Kind.UNSUPPORTED_MEDIA_TYPE: KindSpec(Owner.CALLER, 415, _INVALID, "unsupported_media_type"),
    Kind.MODEL_NOT_FOUND: KindSpec(Owner.CALLER, 404, _INVALID, "model_not_found"),
    Kind.UNAUTHENTICATED: KindSpec(Owner.CALLER, 401, "authentication_error", "invalid_api_key"),
    Kind.AMBIGUOUS_CREDENTIALS: KindSpec(Owner.CALLER, 400, _INVALID, "ambiguous_credentials"),
    Kind.END_USER_REFUSED: KindSpec(Owner.CALLER, 400, _INVALID, "end_user_refused"),
    Kind.PERSON_REFUSED: KindSpec(Owner.POLICY, 403, _FORBIDDEN, "person_refused"),
    Kind.NOT_FOR_PEOPLE: KindSpec(Owner.POLICY, 403, _FORBIDDEN, "not_for_people"),
    Kind.CROSS_ORIGIN: KindSpec(Owner.CALLER, 403, _FORBIDDEN, "cross_origin"),
    # Never fails over: the next provider would be paid from the same purse.
    Kind.QUOTA_EXCEEDED: KindSpec(Owner.POLICY, 429, "rate_limit_error", "quota_exceeded"),
    Kind.UNPRICED_MODEL: KindSpec(Owner.POLICY, 403, _FORBIDDEN, "unpriced_model"),
    Kind.GATEWAY_BUSY: KindSpec(Owner.GATEWAY, 503, "server_error", "gateway_busy"),
    Kind.SHUTTING_DOWN: KindSpec(Owner.GATEWAY, 503, "server_error", "shutting_down"),
    Kind.LEDGER_UNAVAILABLE: KindSpec(Owner.GATEWAY, 503, "server_error", "ledger_unavailable"),
    Kind.INTERNAL: KindSpec(Owner.GATEWAY, 500, "server_error", "internal_error"),
    Kind.DEADLINE_EXCEEDED: KindSpec(Owner.GATEWAY, 504, "server_error", "deadline_exceeded"),
    Kind.CLIENT_LEFT: KindSpec(Owner.CALLER, 400, _INVALID, "client_left"),
    Kind.PROVIDERS_UNAVAILABLE: KindSpec(Owner.PROVIDER, 503, "server_error", "providers_unavailable"),
    # The vendor calls the request itself wrong: another vendor would get the same request.
    Kind.UPSTREAM_INVALID_REQUEST: KindSpec(Owner.CALLER, 400, _INVALID, "invalid_request"),
    Kind.UPSTREAM_TOO_LARGE: KindSpec(Owner.CALLER, 413, _INVALID, "request_too_large"),
    # Our key was refused. 502 and not 401: the caller's own credential is fine.
    Kind.UPSTREAM_AUTH: KindSpec(Owner.PROVIDER, 502, "server_error", "upstream_auth", True),
    Kind.UPSTREAM_MODEL_UNAVAILABLE: KindSpec(Owner.PROVIDER, 502, "server_error", "model_unavailable", True),
    Kind.UPSTREAM_UNREACHABLE: KindSpec(Owner.PROVIDER, 504, "server_error", "upstream_unreachable", True),
    Kind.UPSTREAM_TIMEOUT: KindSpec(Owner.PROVIDER, 504, "server_error", "upstream_timeout", True),
    Kind.UPSTREAM_RATE_LIMITED: KindSpec(Owner.PROVIDER, 429, "rate_limit_error", "rate_limit_exceeded", True),
    Kind.UPSTREAM_ERROR: KindSpec(Owner.PROVIDER, 502, "server_error", "upstream_error", True),
    Kind.UPSTREAM_OVERLOADED: KindSpec(Owner.PROVIDER, 503, "server_error", "upstream_overloaded", True),
    Kind.UPSTREAM_PROTOCOL: KindSpec(Owner.PROVIDER, 502, "server_error", "upstream_protocol", True),
    Kind.UPSTREAM_INTERRUPTED: KindSpec(Owner.PROVIDER, 502, "server_error", "upstream_interrupted", True),
}


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


class GatewayError(Exception):
    """An error that may be shown to the client.

    ``message`` is written for a person and never holds prompt or answer text, keys or paths.
    ``retry_after_s`` becomes a ``Retry-After`` header. ``param`` names the field at fault.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(kind.value)  # str(error) is safe to log: the kind, never the message
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers or {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """The OpenAI error object: what the SDKs read ``message``, ``type``, ``param``, ``code`` from."""
        spec = self.kind.spec
        return {"error": {"message": self.message, "type": spec.type, "param": self.param, "code": spec.code}}

    def anthropic_body(self, request_id: str) -> dict[str, Any]:
        """Anthropic's error object. It has no place for the field at fault, so the message names it."""
        message = f"{self.param}: {self.message}" if self.param else self.message
        return {"type": "error", "error": {"type": self.anthropic_type, "message": message}, "request_id": request_id}

    @property
    def anthropic_type(self) -> str:
        """One of the types in Anthropic's documentation ("Errors")."""
        if self.kind in (Kind.UPSTREAM_OVERLOADED, Kind.PROVIDERS_UNAVAILABLE, Kind.GATEWAY_BUSY):
            return "overloaded_error"
        status = self.kind.spec.status
        return _ANTHROPIC_TYPES.get(status, _INVALID if status < 500 else "api_error")


class InvalidRequestError(GatewayError):
    """The caller's request is wrong; ``param`` is its path in the body, such as ``messages[2].content``."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(Kind.INVALID_REQUEST, message, param=param)
