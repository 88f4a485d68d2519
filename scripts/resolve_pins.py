"""Fill the unresolved entries of contract/pins.yml from their public sources. Needs a machine with internet.

    python scripts/resolve_pins.py             look up, write, show the difference
    python scripts/resolve_pins.py --dry-run   look up and show the difference only
    python scripts/resolve_pins.py --add k3s@v1.36.5+k3s1
                                               first add entries for this version, made from those of the last one listed

Images are asked with skopeo, chart archives fetched with helm, release files taken from the list of checksums that
lies beside them, with curl. Nothing is written without the tool, the address and the day it came from. An entry that
cannot be looked up stays as it is, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "contract" / "pins.yml"
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
PACKAGES = {"skopeo": "apt install skopeo", "helm": "see https://helm.sh", "curl": "apt install curl"}
TIMEOUT_S = 120


class LookUpError(Exception):
    """One entry cannot be looked up; the text says why and what to do."""


@dataclass(frozen=True)
class Found:
    """What a look-up gave: field (sha256 or digest), value, architecture, and where it was seen by what."""

    field: str
    value: str
    arch: str
    source: str


def tool(*command: str) -> bytes:
    """Standard output of a tool. Raises LookUpError when it is missing, fails, or takes too long."""
    if shutil.which(command[0]) is None:
        raise LookUpError(f"{command[0]} is missing: {PACKAGES[command[0]]}")
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise LookUpError(f"{command[0]} gave no answer within {TIMEOUT_S} s; is there internet?") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise LookUpError(f"{command[0]}: {lines[-1]} (this needs a machine with internet)")
    return done.stdout


def version_of(name: str) -> str:
    """`skopeo 1.9.3`: what goes into the source, so that a later reader knows how a value was made."""
    flags = {"helm": ("version", "--short")}.get(name, ("--version",))
    first = tool(name, *flags).decode(errors="replace").splitlines()[0]
    number = re.search(r"v?\d+\.\d+(\.\d+)?", first)
    return f"{name} {number.group(0) if number else first}"


def image(pin: dict[str, Any]) -> Found:
    """The digest of an image index: the hash of the manifest's bytes, which is what a registry calls its digest."""
    address = f"docker://{pin['reference']}"
    raw = tool("skopeo", "inspect", "--raw", address)
    try:
        kind = json.loads(raw).get("mediaType", "")
    except (ValueError, AttributeError):
        raise LookUpError(f"{address} answered something that is no manifest") from None
    if kind not in INDEX_TYPES:
        # A child manifest runs on one architecture and ends in `exec format error` on the other.
        raise LookUpError(f"{address} is {kind or 'a manifest without a type'}, not an index of several architectures")
    return Found("digest", f"sha256:{hashlib.sha256(raw).hexdigest()}", "index", f"{address} by {version_of('skopeo')}")


def chart(pin: dict[str, Any]) -> Found:
    """The hash of a chart's archive, as helm fetches it."""
    repository = str(pin["repository"])
    with tempfile.TemporaryDirectory() as folder:
        where = [repository] if repository.startswith("oci://") else [pin["reference"], "--repo", repository]
        tool("helm", "pull", *where, "--version", pin["version"], "--destination", folder)
        archives = list(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise LookUpError(f"helm pull brought {len(archives)} archives from {repository}")
        digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    return Found("sha256", digest, "any", f"{repository} {pin['reference']} {pin['version']} by {version_of('helm')}")


def checksum_in(text: str, name: str) -> str:
    """The sha256 of one file in a list of `hash  name` lines; raises LookUpError when the list does not hold it."""
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})\s+\*?(\S+)", line.strip())
        if match and match.group(2) == name:
            return match.group(1)
    raise LookUpError(f"the list of checksums does not name {name}")


def release_file(pin: dict[str, Any]) -> Found:
    """The checksum of a release file, from the list beside it."""
    if not pin.get("checksums"):
        raise LookUpError("the entry has no `checksums` address to look in")
    text = tool("curl", "--fail", "--silent", "--show-error", "--location", pin["checksums"]).decode(errors="replace")
    value = checksum_in(text, pin["reference"])
    return Found("sha256", value, pin["arch"], f"{pin['checksums']} by {version_of('curl')}")


LOOK_UPS = {"image": image, "chart": chart, "file": release_file}


def filled(text: str, found: dict[int, Found], day: str) -> str:
    """The lock's text with the entries of the given positions filled. All else stays, comments too.

    found: position in `pins` -> what was found.
    """
    root: Any = yaml.compose(text)
    pins = next(value for key, value in root.value if key.value == "pins")
    lines = text.splitlines(keepends=True)
    # From the end, so that earlier line numbers stay right.
    for position in sorted(found, reverse=True):
        what = found[position]
        for key, value in reversed(pins.value[position].value):
            start, end = key.start_mark.line, value.end_mark.line
            # A block scalar ends at the start of the next line, a plain one within its own.
            end = end if value.end_mark.column == 0 else end + 1
            indent = " " * key.start_mark.column
            if key.value == "unresolved":
                lines[start:end] = [
                    f'{indent}{what.field}: "{what.value}"\n',
                    f'{indent}seen: "{day}"\n',
                    f"{indent}confirmed: 1\n",
                    f"{indent}sources:\n",
                    f"{indent}  - {json.dumps(what.source)}\n",
                ]
            elif key.value == "arch":
                lines[start] = f"{indent}arch: {what.arch}\n"
    return "".join(lines)


# What belongs to the old version's checksum, and not to the new version.
PROVENANCE = {"sha256", "digest", "seen", "confirmed", "sources", "note", "unresolved"}


def added(text: str, name: str, version: str) -> str:
    """The lock's text with unresolved entries for another version of one name, one for each that its last version has.

    Raises LookUpError when the lock does not know the name, or knows this version already.
    """
    pins = yaml.safe_load(text)["pins"]
    known = [pin for pin in pins if pin["name"] == name]
    if not version:
        raise LookUpError("write it as NAME@VERSION")
    if not known:
        raise LookUpError(f"the lock has no {name} to make an entry from")
    if any(pin["version"] == version for pin in known):
        raise LookUpError(f"the lock has {name} {version} already")
    old = known[-1]["version"]
    blocks = []
    for pin in known:
        if pin["version"] != old:
            continue
        # In addresses `+` is written %2B, in image tags it is a hyphen.
        swaps = [(old, version), (old.replace("+", "%2B"), version.replace("+", "%2B")), (old.replace("+", "-"), version.replace("+", "-"))]
        lines = []
        for key, value in pin.items():
            if key in PROVENANCE:
                continue
            for before, after in swaps:
                value = value.replace(before, after)
            lines.append(f"    {key}: {value if key in ('name', 'kind', 'arch') else json.dumps(value)}\n")
        blocks.append("  - " + "".join(lines).lstrip() + '    unresolved: "not looked up yet"\n')
    return text + "".join(blocks)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Fill the unresolved entries of contract/pins.yml.")
    parser.add_argument("--dry-run", action="store_true", help="show the difference, write nothing")
    parser.add_argument("--add", metavar="NAME@VERSION", help="add entries for this version first")
    parser.add_argument("--lock", type=Path, default=LOCK, help="the lock file")
    options = parser.parse_args(arguments)
    before = text = options.lock.read_text(encoding="utf-8")
    if options.add:
        name, _, version = options.add.partition("@")
        try:
            text = added(text, name, version)
        except LookUpError as error:
            print(f"{options.add}: {error}", file=sys.stderr)
            return 1
    pins = yaml.safe_load(text)["pins"]
    found: dict[int, Found] = {}
    failures = 0
    for position, pin in enumerate(pins):
        if "unresolved" not in pin:
            continue
        name = f"{pin['kind']} {pin['name']} {pin['version']} {pin['arch']}"
        try:
            found[position] = LOOK_UPS[pin["kind"]](pin)
            print(f"{name}: {found[position].value}")
        except LookUpError as error:
            failures += 1
            print(f"{name}: stays unresolved: {error}", file=sys.stderr)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    new = filled(text, found, today)
    sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), new.splitlines(True), "before", "after"))
    if new != before and not options.dry_run:
        options.lock.write_text(new, encoding="utf-8")
    if not found and not failures:
        print("nothing is unresolved")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
