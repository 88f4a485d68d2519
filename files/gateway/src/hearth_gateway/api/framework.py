"""Flask, without what every request would pay for and this service has no use of.

Each of these costs about as much as parsing the request. None of it changes what a client sees, but for one
thing: an address with `//` in it is not found, instead of redirected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, Request, Response
from werkzeug.routing import MapAdapter

from hearth_gateway.api.responses import HearthResponse


class HearthApp(Flask):
    """One host, no sub-domains, no redirects, no coroutines."""

    response_class = HearthResponse

    def __init__(self) -> None:
        super().__init__("hearth_gateway", static_folder=None)
        # A redirect would need the name that the client knows us by. Nothing here has two addresses.
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = True
        # OPTIONS has no use here, and an automatic answer would be a route that nobody described.
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """For finding routes only: the host is of no interest to them. Who compares it, asks for it (api/door.py)."""
        if request is None:
            return None
        return MapAdapter(
            self.url_map,
            server_name="",
            script_name="/",
            subdomain="",
            url_scheme="http",
            path_info=request.path,
            default_method=request.method,
        )

    def process_response(self, response: Response) -> Response:
        """There are no sessions, and no blueprint has hooks of its own."""
        for hook in reversed(self.after_request_funcs.get(None, ())):
            response = hook(response)
        return response

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func
