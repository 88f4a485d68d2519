"""The runner of the layers: what CI's end means, and that acceptance names tests that there are."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from tests import run

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "files/gateway/tests").rglob("*.py")]


def test_every_test_that_acceptance_names_exists() -> None:
    """Where a layer does not run, nobody would notice that a test has another name now."""
    commands = [" ".join(layer.command) for layer in run.LAYERS.values() if layer.command]
    issues = yaml.safe_load((ROOT / "tests/acceptance.yml").read_text())["issues"]
    named = {test for lines in issues.values() for tests in lines.values() for test in tests}
    missing = [test for test in named - set(commands) if not run.names(test, SOURCES)]
    assert missing == []


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "REPORTS", tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    layers = {
        "long": run.Layer(900, pytest=("tests/test_long.py",)),
        "short": run.Layer(10, command=("true",)),
        "shaky": run.Layer(10, pytest=("tests/test_shaky.py",), independent=True),
    }
    monkeypatch.setattr(run, "LAYERS", layers)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/acceptance.yml").write_text("issues: {1: {a line: [test_of_the_long_layer], another: ['true']}}\n")
    (tmp_path / "tests/test_long.py").write_text("def test_of_another_name():\n    pass\n\n\ndef test_of_the_long_layer():\n    pass\n")
    return tmp_path


def test_a_layer_that_does_not_fit_is_named_and_claims_nothing(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEARTH_TESTS_END", str(time.time() + 100))
    assert run.main(["long", "short"]) == 0
    said = capsys.readouterr().out
    assert "long            NOT RUN: it may take 900 s, and " in said
    assert "\n1 passed, 0 failed, 0 skipped" in said
    assert run.main(["acceptance"]) == 0
    said = capsys.readouterr().out
    assert "issue 1: not shown in this run: a line" in said
    assert "acceptance: 1 passed, 0 failed\n1 not shown, because there was no time for: long" in said


def test_what_a_layer_that_ran_has_not_shown_is_a_failure_all_the_same(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (reports / "tests/acceptance.yml").write_text("issues: {1: {a line: [test_of_the_long_layer, test_of_no_layer]}}\n")
    monkeypatch.setenv("HEARTH_TESTS_END", str(time.time() + 100))
    assert run.main(["long", "short"]) == 0
    assert run.main(["acceptance"]) == 1
    assert "issue 1: NOT SHOWN: a line\n    test_of_no_layer: did not run" in capsys.readouterr().out


def test_without_an_end_everything_runs_and_a_test_that_did_not_is_a_failure(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEARTH_TESTS_END", str(time.time() + 100))
    run.main(["long"])
    monkeypatch.delenv("HEARTH_TESTS_END")
    (reports / "tests/test_long.py").write_text("def test_of_another_name():\n    pass\n")
    assert run.main(["long"]) == 0
    assert run.main(["acceptance"]) == 1
    assert "issue 1: NOT SHOWN: a line\n    test_of_the_long_layer: did not run" in capsys.readouterr().out


SHAKY = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({failing}))
def test_that_fails(number):
    seen = Path(f"seen-{{number}}")
    first = not seen.exists()
    seen.touch()
    assert not first, "a reason to read"

def test_that_passes():
    pass
"""


def test_what_fails_once_is_run_by_itself_and_named(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (reports / "tests/test_shaky.py").write_text(SHAKY.format(failing=2))
    (reports / "tests/acceptance.yml").write_text("issues: {1: {a line: [test_that_fails]}}\n")
    assert run.main(["shaky"]) == 0
    said = capsys.readouterr().out
    assert "a reason to read" in said
    assert "UNSTEADY tests.test_shaky.test_that_fails[0]: failed, and passed by itself" in said
    assert "UNSTEADY tests.test_shaky.test_that_fails[1]" in said
    assert "\n3 passed, 0 failed, 0 skipped" in said
    assert "a reason to read" in (reports / "shaky.log").read_text()
    assert run.main(["acceptance"]) == 0


@pytest.mark.parametrize(("failing", "body"), [(1, "assert False"), (3, "")])
def test_what_fails_twice_or_often_is_a_failure(reports: Path, failing: int, body: str, capsys: pytest.CaptureFixture[str]) -> None:
    (reports / "tests/test_shaky.py").write_text(SHAKY.format(failing=failing).replace("    seen.touch()", f"    seen.touch(); {body}"))
    assert run.main(["shaky"]) == 1
    assert f"\n1 passed, {failing} failed, 0 skipped" in capsys.readouterr().out
