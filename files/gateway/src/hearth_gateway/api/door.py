"""The door: who sends the current HTTP request, and which routes they may use.

Only three headers are looked at: ``Authorization``, ``x-api-key`` and ``x-hearth-end-user``. Every
other header that claims an identity (``X-Forwarded-Email``, ``Remote-User``, …) is as good as absent.
"""

from __future__ import annotations

from typing import Protocol

from flask import request

from hearth_gateway.api.responses import current_environ
from hearth_gateway.core.identity import Caller, TokenStore
from hearth_gateway.errors import GatewayError, Kind

# What a person behind the sign-in proxy may reach beside /api and the page. A list of what is allowed,
# so that a new route is closed to browsers until somebody opens it.
_CHAT_ROUTES = frozenset({"/v1/chat/completions", "/v1/messages", "/v1/models", "/v1/models/<model>"})
_PAGE_ROUTES = frozenset({"/", "/static/<name>"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Register(Protocol):
    """Where people are looked up: ``core.people.People``."""

    def admit(self, caller: Caller) -> None:
        """Raises ``GatewayError`` when this person may not use the gateway."""


class Door:
    """Reads the credential headers of the current request; every route behind it asks here first."""

    def __init__(self, tokens: TokenStore, people: Register | None = None) -> None:
        self._tokens = tokens
        self._people = people

    def caller(self) -> Caller:
        """Raises ``GatewayError``: no valid credential, more than one, or one that may not do this."""
        environ = current_environ()
        caller = self._tokens.identify(
            environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_API_KEY"), environ.get("HTTP_X_HEARTH_END_USER")
        )
        if caller.browser:
            _check_route()
            _check_origin()
        if caller.person is not None and self._people is not None:
            self._people.admit(caller)
        return caller

    def before_request(self) -> None:
        """A browser's credential opens no other route, also none that would ask for no credential."""
        if current_environ().get("HTTP_AUTHORIZATION", "")[:6].lower() == "basic ":
            _check_route()


def _check_route() -> None:
    rule = request.url_rule.rule if request.url_rule is not None else None
    if rule is None or rule in _CHAT_ROUTES or rule in _PAGE_ROUTES or rule.startswith("/api/"):
        return  # None: there is nothing at this address, and the answer is 404
    raise GatewayError(Kind.NOT_FOR_PEOPLE, "This address is for programs with a token of their own.")


def _check_origin() -> None:
    """A page of another site must not act in the name of the person who looks at it.

    The sign-in cookie is SameSite=Lax; this is the second lock. A browser sends at least one of the
    two headers with every request that changes something, and a page can set neither.
    """
    if request.method in _SAFE_METHODS:
        return
    if request.mimetype != "application/json":
        # What a form can send across sites without being asked is not JSON.
        raise GatewayError(Kind.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with the header `Content-Type: application/json`.")
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    same_site = site is None or site == "same-origin"
    # The scheme is not compared: TLS ends before us.
    same_origin = origin is None or origin.partition("://")[2].lower() == request.host.lower()
    if (site is None and origin is None) or not same_site or not same_origin:
        raise GatewayError(Kind.CROSS_ORIGIN, "This request does not come from this server's own page.")
