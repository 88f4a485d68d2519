# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Small files on a host: wanted as data, compared, shown as a difference, written by an atomic rename."""

from __future__ import annotations

import os
import pathlib
import stat
import tempfile
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# Option of every module that writes files; documented in the fragment `files`.
FILES_SPEC: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "required": True,
    "options": {
        "path": {"type": "path", "required": True},
        "state": {"type": "str", "choices": ["file", "link", "folder", "absent"], "default": "file"},
        "content": {"type": "str"},
        "secret_content": {"type": "str", "no_log": True},
        "target": {"type": "str"},
        "brief": {"type": "bool", "default": False},
        "mode": {"type": "str", "default": "0644"},
    },
    "mutually_exclusive": [("content", "secret_content")],
    "required_if": [("state", "link", ("target",)), ("state", "file", ("content", "secret_content"), True)],
}


class HostFile:
    """One wanted file. `plan` compares, `apply` writes; both look at the disk themselves."""

    def __init__(self, want: dict[str, Any]) -> None:
        self.path = pathlib.Path(want["path"])
        self.state = want["state"]
        self.secret = want["secret_content"] is not None
        text = want["secret_content"] if self.secret else want["content"]
        self.content = (text or "").encode()
        self.brief = want["brief"]
        self.target = want["target"] or ""
        self.mode = int(want["mode"], 8)

    def before(self) -> bytes | None:
        """Present content, None when there is no such regular file."""
        if self.path.is_symlink() or not self.path.is_file():
            return None
        return self.path.read_bytes()

    def differs(self) -> bool:
        if self.state == "absent":
            return self.path.is_symlink() or self.path.exists()
        if self.state == "link":
            return not (self.path.is_symlink() and os.readlink(self.path) == self.target)
        if self.state == "folder":
            # One that is there belongs to whoever made it, with its mode.
            return not self.path.is_dir()
        present = self.before()
        return present != self.content or stat.S_IMODE(self.path.stat().st_mode) != self.mode

    def diff(self) -> dict[str, str]:
        present = self.before()
        header = {"before_header": str(self.path), "after_header": str(self.path)}
        if self.state == "link":
            old = os.readlink(self.path) if self.path.is_symlink() else ""
            return {**header, "before": f"link to {old}\n" if old else "", "after": f"link to {self.target}\n"}
        if self.state == "folder":
            return {**header, "before": "", "after": f"folder of mode {self.mode:04o}\n"}
        old_mode = f"{stat.S_IMODE(self.path.stat().st_mode):04o}" if present is not None else ""
        if self.secret or self.brief:
            word = "hidden" if self.secret else f"{len(self.content)} bytes"
            changed = present != self.content
            before = "(another content)\n" if changed and present is not None else f"({word})\n" if present is not None else ""
            after = f"({word})\n"
        else:
            before = "" if present is None else present.decode(errors="replace")
            after = self.content.decode()
        if self.state == "absent":
            return {**header, "before": before, "after": ""}
        if old_mode and old_mode != f"{self.mode:04o}":
            before, after = f"mode {old_mode}\n{before}", f"mode {self.mode:04o}\n{after}"
        return {**header, "before": before, "after": after}

    def apply(self) -> None:
        if self.state == "absent":
            self.path.unlink()
            return
        if self.state == "folder":
            self.path.mkdir(mode=self.mode, parents=True)
            # mkdir takes the umask off.
            self.path.chmod(self.mode)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        temporary = pathlib.Path(name)
        try:
            with os.fdopen(handle, "wb") as sink:
                if self.state == "file":
                    os.fchmod(sink.fileno(), self.mode)
                    sink.write(self.content)
                    sink.flush()
                    # Without this a power cut after the rename can leave an empty file under the final name.
                    os.fsync(sink.fileno())
            if self.state == "link":
                temporary.unlink()
                temporary.symlink_to(self.target)
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def secret_file(path: str, content: str) -> HostFile:
    """A file for its owner's eyes only, as a row of the option `files` would give it."""
    want = {"path": path, "state": "file", "content": None, "secret_content": content, "brief": False, "target": None, "mode": "0600"}
    return HostFile(want)


def bring(module: AnsibleModule, wanted: Sequence[HostFile]) -> tuple[list[str], list[dict[str, str]]]:
    """Write what differs, in this order, or in check mode only compare. Returns the changed paths and their differences.

    Ends the module when a file cannot be written, naming the file and what was done before.
    """
    done: list[str] = []
    diffs: list[dict[str, str]] = []
    for item in wanted:
        try:
            if not item.differs():
                continue
            diffs.append(item.diff())
            if not module.check_mode:
                item.apply()
        except OSError as error:
            module.fail_json(msg=f"{item.path} cannot be written: {error.strerror or error}", changed_paths=done)
        done.append(str(item.path))
    return done, diffs
