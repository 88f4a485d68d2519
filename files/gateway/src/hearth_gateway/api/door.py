"""The door: who sends the current HTTP request."""

from __future__ import annotations

from flask import request

from hearth_gateway.core.identity import Caller, TokenStore


class Door:
    """Reads the credential headers of the current request; every route behind it asks here first."""

    def __init__(self, tokens: TokenStore) -> None:
        self._tokens = tokens

    def caller(self) -> Caller:
        """Raises ``GatewayError`` when there is no valid credential, or more than one."""
        return self._tokens.identify(request.headers.get("Authorization", ""), request.headers.get("x-api-key", ""))
