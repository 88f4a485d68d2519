"""The lock file contract/pins.yml: shape, check and lookup. Private to the collection.

Pure apart from `load`. Read by the filter `homelab.hearth.pin`, by scripts/resolve_pins.py and by the tests.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import yaml
except ImportError:
    # Only filters read pins, and they run where Ansible does, which has it. Importing this file must not need it.
    yaml = None  # type: ignore[assignment]

Pin = dict[str, Any]

FAST_LOADER: Any = getattr(yaml, "CSafeLoader", None) or getattr(yaml, "SafeLoader", None)

KINDS = ("file", "chart", "image")
ARCHITECTURES = ("amd64", "arm64", "any", "index", "unknown")

_REQUIRED = {"name": str, "kind": str, "version": str, "arch": str, "reference": str}
_OPTIONAL = {
    "url": str,
    "checksums": str,
    "repository": str,
    "sha256": str,
    "digest": str,
    "seen": str,
    "confirmed": int,
    "sources": list,
    "unresolved": str,
    "note": str,
}


class PinError(Exception):
    """The lock file does not hold what was asked for, or holds it in the wrong shape. The text is for an operator."""


def default_path() -> Path:
    """contract/pins.yml of the collection that this file belongs to."""
    return Path(__file__).resolve().parents[2] / "contract" / "pins.yml"


def load(path: Path | None = None) -> list[Pin]:
    """The pins of a lock file. Raises PinError when the file is missing or is not a lock."""
    source = path or default_path()
    try:
        # The C loader reads the lock in a tenth of the time, and every worker that looks something up reads it.
        document = yaml.load(source.read_text(encoding="utf-8"), Loader=FAST_LOADER)
    except (OSError, yaml.YAMLError) as error:
        raise PinError(f"{source}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != 1 or not isinstance(document.get("pins"), list):
        raise PinError(f"{source}: not a lock file of format 1")
    return list(document["pins"])


def title(pin: Mapping[str, Any]) -> str:
    """One pin in words, for messages: `k3s v1.36.4+k3s1 amd64 (file k3s)`."""
    return f"{pin.get('name')} {pin.get('version')} {pin.get('arch')} ({pin.get('kind')} {pin.get('reference')})"


def is_resolved(pin: Mapping[str, Any]) -> bool:
    return bool(pin.get("sha256") or pin.get("digest"))


def _shape_problems(pin: Mapping[str, Any]) -> list[str]:
    problems = []
    known = _REQUIRED | _OPTIONAL
    for key, value in pin.items():
        if key not in known:
            problems.append(f"unknown key {key}")
        elif not isinstance(value, known[key]) or isinstance(value, bool):
            problems.append(f"{key} must be a {known[key].__name__}, is {value!r}")
    problems += [f"{key} is missing" for key in _REQUIRED if not pin.get(key)]
    if pin.get("kind") not in KINDS:
        problems.append(f"kind must be one of {', '.join(KINDS)}")
    if pin.get("arch") not in ARCHITECTURES:
        problems.append(f"arch must be one of {', '.join(ARCHITECTURES)}")
    return problems


def _provenance_problems(pin: Mapping[str, Any]) -> list[str]:
    problems = []
    if pin.get("unresolved"):
        problems += [f"is unresolved and has {key}" for key in ("sha256", "digest", "seen", "sources") if pin.get(key)]
        return problems
    if not is_resolved(pin):
        return ["has neither sha256, nor digest, nor `unresolved: <why>`"]
    if pin.get("sha256") and pin.get("digest"):
        problems.append("has both sha256 and digest")
    if pin.get("sha256") and not re.fullmatch(r"[0-9a-f]{64}", str(pin["sha256"])):
        problems.append("sha256 is not 64 hexadecimal digits")
    if pin.get("digest") and not re.fullmatch(r"sha256:[0-9a-f]{64}", str(pin["digest"])):
        problems.append("digest is not sha256: and 64 hexadecimal digits")
    sources = pin.get("sources")
    if not isinstance(sources, list) or not sources or not all(isinstance(s, str) and s.strip() for s in sources):
        problems.append("a checksum without a source: say in `sources` who states it")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(pin.get("seen", ""))):
        problems.append("a checksum without the day it was seen: `seen: \"YYYY-MM-DD\"`")
    return problems


def check(pins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything wrong with a lock, one sentence each; an empty list when it is right."""
    problems = []
    seen: dict[tuple[str, ...], str] = {}
    for pin in pins:
        problems += [f"{title(pin)}: {problem}" for problem in _shape_problems(pin) + _provenance_problems(pin)]
        identity = tuple(str(pin.get(key)) for key in ("name", "kind", "version", "arch"))
        if identity in seen:
            problems.append(f"{title(pin)}: stands in the lock twice")
        seen[identity] = title(pin)
    return problems


def find(pins: Sequence[Pin], name: str, kind: str, version: str, arch: str = "amd64") -> Pin | None:
    """The pin for one thing on one architecture, or None. An entry for `any` or `index` serves every architecture."""
    found = [p for p in pins if p["name"] == name and p["kind"] == kind and p["version"] == version]
    for wanted in (arch, "index", "any", "unknown"):
        for pin in found:
            if pin["arch"] == wanted:
                return pin
    return None


def lookup(pins: Sequence[Pin], name: str, kind: str, version: str, arch: str = "amd64") -> Pin:
    """Like `find`, and never None: what the lock lacks comes back as an unresolved pin that says so.

    The result has `listed` (the lock has an entry for it, bool), `resolved` (the entry has a checksum, bool) and
    `problem` (text, empty when the pin can be used). For images `image` is the
    name to pull: by digest when there is one, else by tag. Raises PinError for a name the lock does not know at all,
    because that is a misspelling, not a gap.
    """
    names = sorted({p["name"] for p in pins if p["kind"] == kind})
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PinError(f"contract/pins.yml has no {kind} named {name}{hint}")
    pin = find(pins, name, kind, version, arch)
    if pin is None:
        known = sorted({f"{p['version']} ({p['arch']})" for p in pins if p["name"] == name and p["kind"] == kind})
        result: Pin = {"name": name, "kind": kind, "version": version, "arch": arch, "reference": "", "resolved": False}
        result["listed"] = False
        result["problem"] = f"contract/pins.yml knows {name} only as {', '.join(known)}"
        return result
    result = dict(pin)
    result["listed"], result["resolved"] = True, is_resolved(pin)
    result["problem"] = ""
    if not result["resolved"]:
        result["problem"] = f"no checksum is known: {' '.join(str(pin['unresolved']).split())}"
    elif pin["arch"] == "unknown" and arch != "amd64":
        # Several projects pin a child manifest: it runs on amd64 and ends in `exec format error` on Graviton.
        result["problem"] = f"nobody has looked whether this digest serves {arch}"
    if kind == "image":
        repository = re.sub(r":[^:/@]+$", "", str(pin["reference"]))
        result["image"] = f"{repository}@{pin['digest']}" if pin.get("digest") else pin["reference"]
    return result
