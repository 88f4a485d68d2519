"""Unit tests import the collection as Ansible does: by its full name, through Ansible's own finder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder

ROOT = Path(__file__).resolve().parents[2]

# `ansible_collections` is no ordinary package: the finder looks through the collection paths first (make setup has
# put a link to this checkout there), then through what pip installed.
_AnsibleCollectionFinder(paths=[str(ROOT / ".collections")])._install()


class ModuleExit(Exception):
    """What a module would have printed as its result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result)
        self.result = result

    @property
    def failed(self) -> bool:
        return bool(self.result.get("failed"))


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run a module's `main` with arguments, in process; returns the result that Ansible would get."""

    def run(main: Callable[[], None], check: bool = False, diff: bool = False, **arguments: Any) -> dict[str, Any]:
        # None means: not given.
        arguments = {name: value for name, value in arguments.items() if value is not None}
        given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_remote_tmp": tempfile.gettempdir()}
        capsys.readouterr()
        with patch_module_args(given), pytest.raises(SystemExit):
            main()
        # The last line is the result; anything before it is noise that would break a real run.
        printed = capsys.readouterr().out.strip().splitlines()
        assert len(printed) == 1, printed
        return dict(json.loads(printed[0]))

    yield run
    basic._ANSIBLE_ARGS = None
