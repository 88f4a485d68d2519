"""The chat page's files: complete, typed, and without anything from elsewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

GATEWAY = Path(__file__).resolve().parents[1]
STATIC = GATEWAY / "src" / "hearth_gateway" / "web" / "static"
FILES = sorted(STATIC.iterdir())


def test_types_of_the_page() -> None:
    """`tsc` checks the JSDoc types; the page itself needs no build step."""
    project = GATEWAY / "web-types"
    tsc = project / "node_modules" / ".bin" / "tsc"
    if not tsc.exists():
        pytest.fail(f"{tsc} is missing: run `make setup`")
    done = subprocess.run([tsc, "--project", project], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_script_asks_to_be_checked() -> None:
    scripts = [path for path in FILES if path.suffix == ".js"]
    assert len(scripts) > 4
    for path in scripts:
        assert path.read_text().startswith("// @ts-check\n"), path.name


def test_files_that_are_named_exist_and_the_others_are_named() -> None:
    named = set()
    for path in FILES:
        text = path.read_text()
        named |= set(re.findall(r'"static/([\w.-]+)"', text))
        named |= set(re.findall(r'(?:href|src)="([\w-]+\.\w+)"', text))
        named |= set(re.findall(r'from "\./([\w.-]+)"', text))
    assert named == {path.name for path in FILES} - {"index.html"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_inline_and_nothing_from_another_host(path: Path) -> None:
    text = path.read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in text, word
    if path.suffix == ".html":
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", text), "inline code or style"
    addresses = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
    assert addresses == set()


def test_the_promise_is_the_honest_one() -> None:
    page = " ".join((STATIC / "index.html").read_text().split())
    assert "While an answer is being written the words pass through the server\u2019s memory and to the model" in page
    for lie in ("zero knowledge", "zero-knowledge", "end-to-end", "nobody can see"):
        assert all(lie not in path.read_text().lower() for path in FILES), lie
