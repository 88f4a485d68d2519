"""Action part of `host_survey`: brackets the module by the controller's clock, so that the host's can be compared.

The module alone cannot tell how long it was under way. The host's time lies between the two readings here, hence
the difference between the clocks lies between two bounds; a slow connection widens them and never raises an alarm.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Runs the module of the same name and adds `clock.skew_s`: [low, high] in seconds, positive when the host is ahead."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        before = time.time()
        result |= self._execute_module(task_vars=task_vars)
        after = time.time()
        clock = result.get("survey", {}).get("clock")
        if clock is not None:
            clock["skew_s"] = [round(clock["epoch"] - after, 3), round(clock["epoch"] - before, 3)]
        return result
