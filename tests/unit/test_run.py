"""What `tests/run.py` says of the layers it ran, and what it does not claim."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import run

PASSES = "def test_it() -> None:\n    pass\n"
FAILS = "def test_it() -> None:\n    assert False\n"
FAILS_ONCE = """
from pathlib import Path

def test_it() -> None:
    seen = Path(__file__).with_suffix(".seen")
    first = not seen.exists()
    seen.touch()
    assert not first
"""
SLOW = """
import time
from pathlib import Path

def test_it() -> None:
    Path(__file__).with_name("reached").touch()
    time.sleep(600)
"""
SKIPS = "import pytest\n\ndef test_it() -> None:\n    pytest.skip('no reason that anybody knows of')\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of our own, no layers but those of a test, and no end of time."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(run, "LAYERS", {})
    monkeypatch.delenv("HEARTH_TESTS_END", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # ten starts of pytest, without what they have no use of
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "acceptance.yml").write_text("issues: {7: {it works: [test_it]}}\nallowed_skips: {}\n")


def layer(tmp_path: Path, name: str, text: str, **options: bool) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / f"test_{name}.py").write_text(text)
    run.LAYERS[name] = run.Layer(60, pytest=(str(tmp_path / name / f"test_{name}.py"),), **options)  # type: ignore[arg-type]


@pytest.fixture
def time_is_over_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CI's time ends when the slow test has begun, however long that took."""
    wait = run.wait

    def until_it_is_reached(process: subprocess.Popen[bytes], until: float | None) -> int | None:
        deadline = time.monotonic() + 120
        while not (tmp_path / "one" / "reached").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert until is not None
        return wait(process, time.time())

    monkeypatch.setattr(run, "wait", until_it_is_reached)
    monkeypatch.setenv("HEARTH_TESTS_END", str(time.time() + 3600))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.rstrip().splitlines()[-1]


def test_counts_close_a_run_and_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer(tmp_path, "one", PASSES)
    layer(tmp_path, "two", PASSES)
    run.LAYERS["sequence"] = run.Layer(60, command=(sys.executable, "-c", ""))
    assert run.main(["one", "two", "sequence"]) == 0
    assert last_line(capsys) == "3 passed, 0 failed, 0 skipped"
    assert run.main(["acceptance"]) == 0
    assert last_line(capsys) == "total: 3 passed, 0 failed, 0 skipped"


def test_a_failure_is_counted_in_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer(tmp_path, "one", FAILS)
    run.LAYERS["sequence"] = run.Layer(60, command=(sys.executable, "-c", "raise SystemExit(3)"))
    assert run.main(["one", "sequence"]) == 1
    assert last_line(capsys) == "0 passed, 2 failed, 0 skipped"
    assert run.main(["acceptance"]) == 1
    assert last_line(capsys) == "total: 0 passed, 2 failed, 0 skipped"


def test_what_there_is_no_time_for_is_named_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layer(tmp_path, "one", PASSES)
    assert run.main(["one"]) == 0
    monkeypatch.setenv("HEARTH_TESTS_END", str(time.time() + 30))
    assert run.main(["one"]) == 0
    said = capsys.readouterr().out
    assert "one             NOT RUN: it may take 60 s" in said
    # A closing line of nought would say that there are no tests.
    assert said.rstrip().splitlines()[-1] == "nothing to count"
    assert run.main(["acceptance"]) == 0
    said = capsys.readouterr().out
    assert "issue 7: not shown in this run: it works" in said
    assert "1 not shown, because there was no time for: one" in said


@pytest.mark.usefixtures("time_is_over_there")
def test_what_takes_too_long_is_stopped_and_claims_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer(tmp_path, "one", PASSES.replace("test_it", "test_quick") + "\n" + SLOW)
    assert run.main(["one"]) == 0
    said = capsys.readouterr().out
    assert said.count("STOPPED: CI's time was over") == 1
    assert said.rstrip().splitlines()[-1] == "nothing to count"
    assert run.main(["acceptance"]) == 0
    said = capsys.readouterr().out
    assert "issue 7: not shown in this run: it works" in said
    assert said.rstrip().splitlines()[-1] == "total: 0 passed, 0 failed, 0 skipped"


@pytest.mark.usefixtures("time_is_over_there")
def test_what_failed_before_it_was_stopped_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer(tmp_path, "one", FAILS.replace("test_it", "test_first") + "\n" + SLOW)
    assert run.main(["one"]) == 1
    assert last_line(capsys) == "0 passed, 1 failed, 0 skipped"


def test_a_skip_that_nobody_listed_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer(tmp_path, "one", SKIPS)
    assert run.main(["one"]) == 1
    said = capsys.readouterr().out
    assert "NOT LISTED in tests/acceptance.yml" in said


def test_a_layer_without_a_test_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer(tmp_path, "one", "")
    assert run.main(["one"]) == 1
    assert last_line(capsys) == "0 passed, 1 failed, 0 skipped"


def test_what_passes_by_itself_is_unsteady_where_tests_are_independent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer(tmp_path, "one", FAILS_ONCE, independent=True)
    assert run.main(["one"]) == 0
    said = capsys.readouterr().out
    assert "UNSTEADY" in said
    assert said.rstrip().splitlines()[-1] == "1 passed, 0 failed, 0 skipped"
    layer(tmp_path, "two", FAILS_ONCE)
    assert run.main(["two"]) == 1


def test_a_line_that_no_test_showed_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer(tmp_path, "one", PASSES.replace("test_it", "test_other"))
    assert run.main(["one"]) == 0
    assert run.main(["acceptance"]) == 1
    assert "NOT SHOWN: it works" in capsys.readouterr().out
