"""GET /api/transparency: what this process is, and who sees the words of a conversation.

A promise that a configuration file makes about itself is worth little. So what can be measured of the
running process is measured at each request, and what cannot be known is null.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, current_app

from hearth_gateway import __version__
from hearth_gateway.api.door import Door
from hearth_gateway.api.responses import HearthResponse, json_response
from hearth_gateway.config import Config, DemoProviderConfig, EndpointConfig, OpenAIProviderConfig, TargetConfig
from hearth_gateway.telemetry import process

IMAGE_DIGEST_VARIABLE = "HEARTH_IMAGE_DIGEST"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
# Parts of an address under which each flag would open something. Nothing here is built yet, so nothing
# is registered; whoever builds it has to be seen by this list, and a test compares it with all routes.
FLAG_ROUTES = {
    "admin_chat_access": frozenset({"admin", "operator"}),
    "admin_export": frozenset({"export"}),
    "community_sharing": frozenset({"share", "shared", "community"}),
}


def create_blueprint(door: Door, config: Config) -> Blueprint:
    """Reads the package's files once, here: later ones could be others than those that run."""
    blueprint = Blueprint("transparency", __name__)
    code = process.code_hash()
    digest = os.environ.get(IMAGE_DIGEST_VARIABLE, "")
    sees = _who_sees(config)

    @blueprint.get("/api/transparency")
    def transparency() -> HearthResponse:
        door.caller()
        return json_response(
            {
                "version": __version__,
                "code_sha256": code,
                "image_digest": digest if _DIGEST.match(digest) else None,
                "flags": _flags(config),
                "process": {
                    "core_dumps": process.core_dumps(),
                    "traced": process.traced(),
                    "log_handlers": process.log_sinks(),
                    "files_written": process.files_written(),
                },
                "routes": sorted({rule.rule for rule in current_app.url_map.iter_rules()}),
                "who_sees_words": {"this_server": "in memory, while an answer is being written", "by_model": sees, "others": []},
            }
        )

    return blueprint


def _flags(config: Config) -> dict[str, dict[str, bool]]:
    """What was asked for, and whether the process has any address that would do it."""
    parts = {part for rule in current_app.url_map.iter_rules() for part in rule.rule.lower().split("/")}
    return {
        flag: {"configured": bool(getattr(config.privacy, flag)), "in_effect": not names.isdisjoint(parts)}
        for flag, names in FLAG_ROUTES.items()
    }


def _who_sees(config: Config) -> dict[str, list[dict[str, Any]]]:
    """By model: every provider that may be asked, in order."""
    providers = {provider.name: provider for provider in config.providers}
    models: Mapping[str, Sequence[TargetConfig | EndpointConfig]] = {**config.models, **config.embedding_models, **config.image_models}
    found: dict[str, list[dict[str, Any]]] = {}
    for alias, targets in models.items():
        found[alias] = []
        for target in targets:
            provider = providers[target.provider]
            entry: dict[str, Any] = {"provider": provider.name, "model": target.model, "host": None, "may_pass_on": False}
            if not isinstance(provider, DemoProviderConfig):
                entry["host"] = urlsplit(provider.base_url).hostname
                # LiteLLM and its like hand the words to a vendor of their own choice.
                entry["may_pass_on"] = isinstance(provider, OpenAIProviderConfig)
            found[alias].append(entry)
    return found
