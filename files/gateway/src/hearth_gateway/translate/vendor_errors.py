"""Faults of vendors as kinds of ours: what both wire formats share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

from hearth_gateway.errors import GatewayError, Kind

# The time, in Unix seconds.
Now = Callable[[], float]

STATUS_KINDS: dict[int, Kind] = {
    400: Kind.UPSTREAM_INVALID_REQUEST,
    401: Kind.UPSTREAM_AUTH,
    402: Kind.UPSTREAM_AUTH,
    403: Kind.UPSTREAM_AUTH,
    404: Kind.UPSTREAM_MODEL_UNAVAILABLE,
    408: Kind.UPSTREAM_TIMEOUT,
    413: Kind.UPSTREAM_TOO_LARGE,
    422: Kind.UPSTREAM_INVALID_REQUEST,
    429: Kind.UPSTREAM_RATE_LIMITED,
    504: Kind.UPSTREAM_TIMEOUT,
    529: Kind.UPSTREAM_OVERLOADED,
}
_MESSAGES: dict[Kind, str] = {
    Kind.UPSTREAM_INVALID_REQUEST: "The provider refused this request as invalid.",
    Kind.UPSTREAM_TOO_LARGE: "The provider says this request is too large.",
    Kind.UPSTREAM_AUTH: "The provider refused the gateway's own key. The operator has to look at it.",
    Kind.UPSTREAM_MODEL_UNAVAILABLE: "The provider does not offer the configured model.",
    Kind.UPSTREAM_RATE_LIMITED: "The provider's rate limit is reached. Please try again later.",
    Kind.UPSTREAM_OVERLOADED: "The provider is overloaded. Please try again in a moment.",
    Kind.UPSTREAM_TIMEOUT: "The provider took too long.",
    Kind.UPSTREAM_ERROR: "The provider had an internal error. Please try again.",
    Kind.UPSTREAM_PROTOCOL: "The provider sent something that is not an answer.",
}

_DEFAULT_RETRY_AFTER_S = 10
_MAX_RETRY_AFTER_S = 3600


def kind_of_status(status: int) -> Kind:
    kind = STATUS_KINDS.get(status)
    if kind is None:
        kind = Kind.UPSTREAM_ERROR if status >= 500 else Kind.UPSTREAM_PROTOCOL
    return kind


def vendor_error(kind: Kind, detail: object = None, retry_after_s: int | None = None) -> GatewayError:
    """The error for ``kind``. ``detail`` is what the vendor said; it is shown for invalid requests only."""
    message = _MESSAGES[kind]
    if kind is Kind.UPSTREAM_INVALID_REQUEST and isinstance(detail, str):
        # Only here the vendor's own words help: they say what the caller has to change. The core
        # checks them against the prompt before they go out (core/redaction.py).
        message = detail
    if retry_after_s is None and kind in (Kind.UPSTREAM_OVERLOADED, Kind.UPSTREAM_ERROR):
        retry_after_s = _DEFAULT_RETRY_AFTER_S
    return GatewayError(kind, message, retry_after_s=retry_after_s)


def protocol_error() -> GatewayError:
    return vendor_error(Kind.UPSTREAM_PROTOCOL)


def interrupted() -> GatewayError:
    return GatewayError(Kind.UPSTREAM_INTERRUPTED, "The provider ended the answer before it was complete.")


def retry_after_seconds(value: str | None, now: Now | None = None) -> int | None:
    """A Retry-After header in whole seconds, of both its forms: a number of seconds, or a date, for which ``now``
    is needed. None for what is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0 if now is None else _seconds_until(value, now)
    return min(int(-(-seconds // 1)), _MAX_RETRY_AFTER_S) if 0 <= seconds < float("inf") else None


def _seconds_until(date: str, now: Now) -> float:
    """0 for a date that has passed, as one does where clocks differ; less than 0 for what is no date."""
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return -1.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now())
