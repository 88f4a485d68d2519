# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation that the modules share which write files."""

from __future__ import annotations


class ModuleDocFragment:
    """The option of module_utils/_files.py, FILES_SPEC."""

    DOCUMENTATION = r"""
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      state:
        description: Whether it is a file, a symbolic link, a folder (made where it is missing, and else left alone), or not there.
        type: str
        choices: [file, link, folder, absent]
        default: file
      content:
        description: Text of the file.
        type: str
      secret_content:
        description: Text of the file when it is secret. It is never shown.
        type: str
      target:
        description: What a link points to.
        type: str
      brief:
        description: Say in a difference only that the content differs. For programs, which nobody reads there.
        type: bool
        default: false
      mode:
        description: Mode of a file, as a quoted octal number.
        type: str
        default: "0644"
"""
