"""The examples of the gateway's README are run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from gateway_support import ROOT, TOKEN, Gateway

from hearth_gateway.api.description import openapi_document

README = (ROOT / "files" / "gateway" / "README.md").read_text()
EXAMPLES = re.findall(r"^curl .*?(?<!\\)$", "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.DOTALL | re.MULTILINE)


def address(example: str) -> str:
    found = re.search(r"\$URL([\w/.]*)", example)
    assert found
    return found[1].rstrip("/") or "/"


@pytest.mark.parametrize("example", EXAMPLES, ids=address)
def test_the_example_works(shared: Gateway, example: str) -> None:
    environment = {**os.environ, "URL": shared.url, "TOKEN": TOKEN}
    command = example.replace("curl ", "curl --fail-with-body --max-time 20 ", 1)
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_every_address_has_an_example() -> None:
    described = {path.replace("{model}", "sonnet") for path in openapi_document()["paths"] if not path.startswith("/static/")}
    assert {address(example) for example in EXAMPLES} == described
