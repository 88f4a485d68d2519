#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keep the gateway running as a supervised process of this user, without root."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_process
short_description: Keep the gateway running as a supervised process of this user
version_added: 0.1.0
description:
  - Starts, updates or stops one program under a C(supervisord) of its own, and waits until it is ready.
  - A running program is left alone unless its section of the configuration changed, so that a rerun keeps its
    process id. When O(identity) differs from what runs, supervisord itself is replaced.
  - Failures are one sentence each. They name the process that holds a port, or show the last log lines.
  - Needs nothing but Python's standard library. Run it on the machine whose process it is.
options:
  state:
    description:
      - V(started) starts or updates and waits until O(url) answers 200.
      - V(stopped) ends the program and its supervisord.
    type: str
    choices: [started, stopped]
    default: started
  directory:
    description: >-
      Directory of the process. It holds C(supervisord.conf), the socket C(supervisor.sock), C(supervisord.pid)
      and C(log) with the logs.
    type: path
    required: true
  program:
    description: Name of the program in the configuration; its log is C(log/<program>.log).
    type: str
    default: gateway
  supervisord:
    description: The supervisord to run. Required for V(started).
    type: path
  identity:
    description: What C(identifier=) in the configuration says. Required for V(started).
    type: str
  addresses:
    description: Addresses as C(host:port) that must be free, or ours, before the program starts.
    type: list
    elements: str
    default: []
  url:
    description: Readiness address. Required for V(started).
    type: str
  timeout_s:
    description: How long to wait for readiness, or for the end, in seconds.
    type: float
    default: 60
attributes:
  check_mode:
    support: full
    description: Says whether the program would be started or stopped; a changed configuration is not seen here.
  diff_mode:
    support: none
    description: There is no text to compare.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Keep the gateway running
  homelab.hearth.gateway_process:
    directory: ~/.local/share/hearth-trial
    supervisord: ~/.local/share/hearth-trial/venv-0123/bin/supervisord
    identity: hearth-0123
    addresses: ["127.0.0.1:8080"]
    url: http://127.0.0.1:8080/readyz

- name: Stop it
  homelab.hearth.gateway_process:
    directory: ~/.local/share/hearth-trial
    state: stopped
"""

RETURN = r"""
pid:
  description: Process id of the program.
  returned: when it runs
  type: int
was_running:
  description: Whether the program ran before.
  returned: always
  type: bool
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._supervised import (
    DOWN,
    ProcessError,
    Supervisor,
    launch,
    require_free,
    size,
    wait_ready,
)


def _started(module: AnsibleModule, supervisor: Supervisor, directory: Path) -> dict[str, Any]:
    params = module.params
    program: str = params["program"]
    log = directory / "log" / f"{program}.log"
    running = supervisor.identity()
    info = supervisor.process(program) if running is not None else None
    up = info is not None and info["statename"] not in DOWN
    before = info["pid"] if info is not None and up else None
    own = {before} if before else set()
    if module.check_mode:
        if not up:
            require_free(params["addresses"], own)
        return {"changed": not up or running != params["identity"], "was_running": up, **({"pid": before} if up else {})}

    require_free(params["addresses"], own)
    # supervisord writes its logs here and does not make the directory.
    log.parent.mkdir(mode=0o700, exist_ok=True)
    log_start = size(log)
    if running is not None and running != params["identity"]:
        supervisor.shut_down(params["timeout_s"])
        running = None
    if running is None:
        launch(Path(params["supervisord"]), directory / "supervisord.conf")
    else:
        supervisor.update()
        info = supervisor.process(program)
        if info is not None and info["statename"] in DOWN:
            # supervisord gave up on it, or somebody stopped it by hand.
            supervisor.call("startProcess", program, False)
    info = wait_ready(supervisor, program, params["url"], log, log_start, params["timeout_s"])
    return {"changed": info["pid"] != before, "was_running": up, "pid": info["pid"]}


def _stopped(module: AnsibleModule, supervisor: Supervisor) -> dict[str, Any]:
    running = supervisor.identity() is not None
    if running and not module.check_mode:
        supervisor.shut_down(module.params["timeout_s"])
    return {"changed": running, "was_running": running}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "directory": {"type": "path", "required": True},
            "program": {"type": "str", "default": "gateway"},
            "supervisord": {"type": "path"},
            "identity": {"type": "str"},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "url": {"type": "str"},
            "timeout_s": {"type": "float", "default": 60},
        },
        required_if=[("state", "started", ("supervisord", "identity", "url"))],
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    try:
        supervisor = Supervisor(directory / "supervisor.sock")
        if module.params["state"] == "started":
            module.exit_json(**_started(module, supervisor, directory))
        module.exit_json(**_stopped(module, supervisor))
    except ProcessError as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
