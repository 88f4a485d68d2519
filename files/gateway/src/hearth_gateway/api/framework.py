"""Flask, without what every request would pay for and this service has no use of.

Each of these costs about as much as parsing the request. None of it changes what a client sees, but for one
thing: an address with `//` in it is not found, instead of redirected.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from flask import Flask, Request, Response
from flask.sessions import NullSession, SessionInterface
from werkzeug.routing import Map, MapAdapter

from hearth_gateway.api.responses import HearthResponse


class _NoSessions(SessionInterface):
    """Who somebody is, every request says anew."""

    _none = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._none


class _Route(MapAdapter):
    """What one path and method lead to. Looked up once: as long as somebody asks for it, the answer is the same."""

    def __init__(self, url_map: Map, path: str, method: str) -> None:
        super().__init__(url_map, server_name="", script_name="/", subdomain="", url_scheme="http", path_info=path, default_method=method)
        self._found: Any = None

    def match(self, *args: Any, **kwargs: Any) -> Any:
        """Flask always asks for the same: the rule, and what is in the path. Raises what Werkzeug raises."""
        if self._found is None:
            self._found = super().match(*args, **kwargs)
        return self._found


class HearthApp(Flask):
    """One host, no sub-domains, no redirects, no coroutines, no sessions, no hooks of single blueprints, no signals."""

    response_class = HearthResponse
    session_interface = _NoSessions()

    def __init__(self) -> None:
        super().__init__("hearth_gateway", static_folder=None)
        # A redirect would need the name that the client knows us by. Nothing here has two addresses.
        self.url_map.merge_slashes = False
        # OPTIONS has no use here, and an automatic answer would be a route that nobody described.
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        # Nearly all requests go to the same few addresses; what others make up drops out again.
        self._route = lru_cache(maxsize=64)(lambda path, method: _Route(self.url_map, path, method))

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """For finding routes only: the host is of no interest to them. Who compares it, asks for it (api/door.py)."""
        return None if request is None else self._route(request.path, request.method)

    def full_dispatch_request(self) -> Response:
        try:
            answer = self.preprocess_request()
            if answer is None:
                answer = self.dispatch_request()
        except Exception as error:
            answer = self.handle_user_exception(error)
        return self.process_response(self.make_response(answer))

    def preprocess_request(self) -> Any:
        for hook in self.before_request_funcs.get(None, ()):
            answer = hook()
            if answer is not None:
                return answer
        return None

    def process_response(self, response: Response) -> Response:
        for hook in reversed(self.after_request_funcs.get(None, ())):
            response = hook(response)
        return response

    def do_teardown_request(self, exc: BaseException | None = None) -> None:
        """Nothing is taken down."""

    def do_teardown_appcontext(self, exc: BaseException | None = None) -> None:
        """Nothing is taken down."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func
