"""The files that other parts of Hearth read: roles, dashboards, alert rules, tests.

They are written from the code by ``hearth-gateway write-contract DIR`` and a test fails when the
copies in the repository's ``contract/`` differ, so each thing is stated once, here.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from hearth_gateway.api.description import openapi_text
from hearth_gateway.config import json_schema
from hearth_gateway.telemetry.metrics import DEFINITIONS, PROCESS_DEFINITIONS, Definition

_NOTE = "# Written by `hearth-gateway write-contract contract`; change the gateway, then write it again.\n"


def contract_files() -> dict[str, str]:
    """File name → text."""
    metrics = {"metrics": [_metric(item) for item in (*DEFINITIONS, *PROCESS_DEFINITIONS)]}
    return {
        "gateway-config.schema.json": json.dumps(json_schema(), indent=2, sort_keys=True) + "\n",
        "metrics.yml": _NOTE + "---\n" + yaml.dump(metrics, Dumper=_Indented, sort_keys=False, width=100, allow_unicode=True),
        "openapi.yml": openapi_text(),
    }


def _metric(item: Definition) -> dict[str, Any]:
    return {"name": item.name, "type": item.type, "labels": list(item.labels), "help": item.help}


class _Indented(yaml.SafeDumper):
    """Lists indented below their key, as yamllint wants them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)
