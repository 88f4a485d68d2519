"""Action part of `host_survey`: brackets the module by the controller's clock, and answers from an earlier look.

The module alone cannot tell how long it was under way. The host's time lies between the two readings here, hence
the difference between the clocks lies between two bounds; a slow connection widens them and never raises an alarm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.homelab.hearth.plugins.module_utils import _plan


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Runs the module of the same name and adds `clock.skew_s`: [low, high] in seconds, positive when the host is ahead.

    With `earlier`, an answer of this module, the host is not asked again for what stands in it already.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        asked = {name: value for name, value in self._task.args.items() if name != "earlier"}
        earlier = self._task.args.get("earlier") or {}
        if isinstance(earlier, Mapping):
            known = _plan.known_already(earlier, asked, time.time())
            if known is not None:
                return {**result, "changed": False, "survey": known, "asked": earlier["asked"], "looked_at": earlier["looked_at"]}
        before = time.time()
        result |= self._execute_module(module_args=asked, task_vars=task_vars)
        after = time.time()
        # Without what nobody compares: the token is a secret, and the probe is about another machine.
        result["asked"] = {name: value for name, value in asked.items() if name not in ("token", "probe")}
        result["looked_at"] = before
        clock = result.get("survey", {}).get("clock")
        if clock is not None:
            clock["skew_s"] = [round(clock["epoch"] - after, 3), round(clock["epoch"] - before, 3)]
        return result
