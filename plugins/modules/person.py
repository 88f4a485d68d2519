#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A person of the house: in the list of the sign-in proxy, and in the gateway."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: person
short_description: Let a person in, take their access away, or give them another address
version_added: 0.2.0
description:
  - Changes both places that know people, the list of the sign-in proxy and the gateway's own store, and ends when both have
    taken the change in, or says which has not.
  - The gateway's part is done by its own command in one of its pods. Addresses go to the command's standard input.
options:
  emails:
    description: Addresses; also one text with commas in between. With O(state=renamed) the one that the person has now.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(present) writes them into the list and makes them known to the gateway, or switches them on again.
      - V(absent) takes them off the list and switches them off in the gateway, which also cuts their open answers. What they
        saved and used is kept, unless O(delete_data) is set. Fails when nobody knows the address.
      - V(renamed) puts the address O(to) in the place of the one in O(emails), with alias, limits and all that was used so far,
        and switches the former one off.
    type: str
    choices: [present, absent, renamed]
    default: present
  to:
    description: The new address, with O(state=renamed).
    type: str
  alias:
    description: A short name for lists and metrics; an empty text for none. For one person only.
    type: str
  daily_limit_usd:
    description: >-
      What the person may spend a day, in US dollars, or V(none) for the limits of the house. The person's other ceilings stay,
      those of the house are copied when they had none of their own.
    type: str
  delete_data:
    description: With O(state=absent), have the gateway forget the person. What they used is then nobody's.
    type: bool
    default: false
  wait_s:
    description: How long the sign-in proxy may take to read the changed list, in seconds.
    type: float
    default: 20
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: partial
    description: Says what would be changed.
    details: How much there is to delete with O(delete_data) is not known before, so a second deletion is told as a change.
  diff_mode:
    support: full
    description: Before and after of the list, and of what the gateway knows.
requirements:
  - websocket-client
seealso:
  - module: homelab.hearth.person_info
  - module: homelab.hearth.email_whitelist
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Let Ann in, for at most two and a half dollars a day
  homelab.hearth.person:
    kubeconfig: ~/.kube/hearth.yaml
    emails: ann@example.org
    alias: Ann
    daily_limit_usd: "2.50"
  delegate_to: localhost

- name: Ben moved out
  homelab.hearth.person:
    kubeconfig: ~/.kube/hearth.yaml
    emails: ben@example.org
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
done:
  description: What was done, or would be, a sentence each.
  returned: always
  type: list
  elements: str
emails:
  description: Who is in the list now, or would be.
  returned: always
  type: list
  elements: str
locked_since:
  description: Since when the house is locked down; empty when it is not.
  returned: always
  type: str
"""

import json
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _names
from ansible_collections.homelab.hearth.plugins.module_utils._emails import (
    EmailError,
    MalformedListError,
    normalise,
    normalise_all,
    readable,
)
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import AUTH_SPEC, Cluster, ClusterError
from ansible_collections.homelab.hearth.plugins.module_utils._lock import locked_since
from ansible_collections.homelab.hearth.plugins.module_utils._people import (
    NOTICED_S,
    Gateway,
    PeopleError,
    Person,
    amount,
    limits_with,
    same_limits,
)
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import WhitelistError, change, list_in, wait_until_read

LIST = {
    "namespace": _names.ACCESS_NAMESPACE,
    "name": _names.WHITELIST,
    "key": _names.WHITELIST_KEY,
    "repair": False,
    "allow_empty": False,
    "create_namespace": False,
    "refresh_pods": True,
}


def is_active(person: Person | None) -> bool:
    return person is not None and person["state"] == "active"


class Run:
    """One run of the module against a cluster that has both, list and gateway."""

    def __init__(self, module: AnsibleModule, cluster: Cluster) -> None:
        self.params, self.check, self.cluster = module.params, bool(module.check_mode), cluster
        where = f"ConfigMap {LIST['namespace']}/{LIST['name']}"
        stored = cluster.get("v1", "ConfigMap", _names.WHITELIST, _names.ACCESS_NAMESPACE)
        if stored is None:
            raise PeopleError(
                f"there is no list of people ({where}), so nobody can sign in yet: set oauth2_proxy_chat_host and run site.yml first"
            )
        self.locked_since = locked_since(stored)
        try:
            self.listed, problems = readable(list_in(stored, {**LIST, "state": module.params["state"]}) or "")
            if problems:
                raise WhitelistError(f"the list of people ({where}) is malformed: {MalformedListError(problems)}; mend it first")
            self.list_is_sound = True
        except WhitelistError:
            # Taking somebody's access away begins at the gateway, also when the list is broken.
            if module.params["state"] != "absent":
                raise
            self.listed, self.list_is_sound = [], False
        self.gateway = Gateway(cluster)
        # Who is let in as they are needs no look ahead: the gateway's answer says what was before.
        self.admits = module.params["state"] == "present" and module.params["daily_limit_usd"] is None and not self.check
        self.known = {} if self.admits else self.gateway.people()
        self.after: dict[str, Person] = {}
        self.done: list[str] = []
        self.noticed_at = 0.0

    # --- the gateway

    def _person(self, action: str, email: str, *options: str, to_notice: bool = True) -> dict[str, Any]:
        """Have the gateway change a person, unless this is only a check.

        :param to_notice: whether a running gateway has to take the change in before it counts.
        """
        if self.check:
            return {}
        answer: dict[str, Any] = self.gateway.person(action, email, *options)
        if "person" in answer:
            self.after[email] = answer["person"]
        if to_notice:
            self.noticed_at = time.monotonic() + NOTICED_S
        return answer

    def _note(self, email: str, **changes: Any) -> None:
        """What the person would be, for check mode; afterwards the gateway's own answer stands there."""
        fresh = {"email": email, "state": "active", "alias": None, "limits": None}
        self.after[email] = {**fresh, **self.known.get(email, {}), **changes}

    def _bring(self, email: str, alias: str | None, limits: dict[str, Any] | None, limits_given: bool) -> None:
        """Have the gateway know the person as active, with alias and limits where they are given."""
        before = self.known.get(email)
        options, wanted = [], {"state": "active"}
        if alias is not None and (alias.strip() or None) != (before or {}).get("alias"):
            options += ["--alias", alias]
            wanted["alias"] = alias.strip()
        if limits_given and not same_limits(limits, (before or {}).get("limits")):
            options += ["--limits", "none" if limits is None else json.dumps(limits)]
            wanted["limits"] = limits  # type: ignore[assignment]
        if before is None or options or not is_active(before):
            self._note(email, **wanted)
        if before is None:
            # The gateway reads the record of somebody new when they first come, so there is nothing that it has to notice.
            self._person("set", email, *options, to_notice=False)
        elif options:
            self._person("set", email, *options)
        if before is not None and not is_active(before):
            self._person("enable", email)

    def _admit(self, email: str, alias: str | None) -> None:
        """What `_bring` does, in one command of the gateway's: each takes it the better part of a second."""
        answer = self.gateway.person("set", email, "--active", *([] if alias is None else ["--alias", alias]))
        if answer["before"] is not None:
            self.known[email] = answer["before"]
        if answer["changed"]:
            self.after[email] = answer["person"]
        if answer["changed"] and answer["before"] is not None:
            self.noticed_at = time.monotonic() + NOTICED_S

    def _switch_off(self, email: str) -> None:
        if email not in self.known or is_active(self.known[email]):
            self._note(email, state="disabled")
            self._person("disable", email)

    def _forget(self, email: str) -> None:
        known = self.known.get(email)
        answer = self._person("delete-data", email)
        stored = answer.get("ledger_rows", 0) or answer.get("daily_sums", 0) or any((known or {}).get(k) for k in ("alias", "limits"))
        if stored or (self.check and known is not None):
            self.after[email] = {"email": email, "state": "disabled", "data": "deleted"}
            self.done.append(f"What was stored of {email} is deleted; what they used is nobody's.")

    # --- the list

    def _list(self, state: str, emails: list[str]) -> dict[str, Any]:
        result: dict[str, Any] = change(self.cluster, {**LIST, "state": state}, emails)
        return result

    # --- what is asked for

    def present(self, emails: list[str]) -> dict[str, Any]:
        params = self.params
        if len(emails) > 1 and params["alias"]:
            raise PeopleError("alias: several people cannot have one short name; add them one by one")
        daily = None if params["daily_limit_usd"] is None else amount(params["daily_limit_usd"])
        given = params["daily_limit_usd"] is not None
        house = self.gateway.house_limits() if given and daily is not None else {}
        for email in emails:
            if self.admits:
                self._admit(email, params["alias"])
                continue
            own = self.known.get(email, {}).get("limits")
            self._bring(email, params["alias"], limits_with(own, house, daily) if given else None, given)
        # The gateway first: who comes in has their limits from the first question on.
        result = self._list("present", emails)
        for email in emails:
            new = email in result["added"] or not is_active(self.known.get(email))
            self.done.append(f"{email} may sign in now." if new else f"{email} could sign in already.")
        return result

    def absent(self, emails: list[str]) -> dict[str, Any]:
        strangers = [email for email in emails if email not in self.listed and email not in self.known]
        # Whom the proxy lets in by a broken list, nobody can tell from here: the gateway refuses whoever is named.
        if strangers and self.list_is_sound:
            raise PeopleError(
                f"nobody here has the address {', '.join(strangers)}: it is neither in the list nor known to the gateway "
                "(list_users.yml shows who is); nothing was changed"
            )
        for email in emails:
            self._switch_off(email)
        try:
            result = self._list("absent", emails)
        except WhitelistError as error:
            raise WhitelistError(f"the gateway refuses {', '.join(emails)} already, but {error}") from None
        for email in emails:
            was_in = email in result["removed"] or email in self.after
            self.done.append(f"{email} is refused from now on, open answers are cut." if was_in else f"{email} was refused already.")
            if self.params["delete_data"]:
                self._forget(email)
        return result

    def renamed(self, emails: list[str]) -> dict[str, Any]:
        [old], new = emails, normalise(self.params["to"])
        if old == new:
            raise PeopleError("from and to are the same address")
        if old in self.listed and new in self.listed:
            raise PeopleError(f"{new} is a person of their own already; to merge the two, remove {old}")
        # A rename that was done before left the old address with the gateway, as switched off.
        if old not in self.listed and (new not in self.listed or old not in self.known):
            raise PeopleError(f"nobody here has the address {old} (list_users.yml shows who is); nothing was changed")
        self._rename(old, new)
        result = self._list("renamed", [old, new])
        if old not in self.listed and not self.after:
            self.done.append(f"{new} has the place of {old} already.")
        else:
            self.done.append(f"{new} may sign in now, {old} no longer. What was used so far counts for {new}.")
        return result

    def _rename(self, old: str, new: str) -> None:
        """Have the gateway know the person by the new address, with what is stored of them, and refuse the former one."""
        before = self.known.get(old)
        if before is None:
            # Nothing is stored of them. The former address is known as refused from now on, else it would be somebody new.
            if old in self.listed:
                self._bring(new, None, None, False)
            self._switch_off(old)
            return
        answer = {} if self.check else self.gateway.person("rename", f"{old} {new}")
        if answer.get("changed", is_active(before)):
            there = self.known.get(new, {})
            self._note(new, state="active", **{key: there.get(key) or before.get(key) for key in ("alias", "limits")})
            self._note(old, state="disabled", alias=None, limits=None)
            if not self.check:
                self.after[new] = answer["person"]
            self.noticed_at = time.monotonic() + NOTICED_S
        if answer.get("open_rows"):
            self.done.append(f"{answer['open_rows']} answers were still being written to {old}; run this again when they are done.")

    def settle(self) -> None:
        """Wait until what was changed is so."""
        if self.check:
            return
        # Also when nothing changed: the run before may have ended here, with a proxy that had not read the list.
        wait_until_read(self.cluster, _names.ACCESS_NAMESPACE, _names.WHITELIST, self.params["wait_s"])
        time.sleep(max(0.0, self.noticed_at - time.monotonic()))

    def diff(self, of_list: dict[str, Any]) -> list[dict[str, Any]]:
        def text(people: dict[str, Person]) -> str:
            shown = [people[email] for email in sorted(self.after) if email in people]
            return "".join(json.dumps(person, sort_keys=True) + "\n" for person in shown)

        where = "people of the gateway"
        gateway = {"before_header": where, "after_header": where, "before": text(self.known), "after": text(self.after)}
        return [of_list, gateway]


def run(module: AnsibleModule) -> dict[str, Any]:
    emails = normalise_all(module.params["emails"])
    if not emails:
        raise PeopleError("no address given; say who, for example -e email=ann@example.org")
    state = module.params["state"]
    if state == "renamed" and (len(emails) > 1 or not module.params["to"]):
        raise PeopleError("to rename somebody takes one address and the new one, for example -e from=ann@example.org -e to=ann@example.net")
    # Said before a cluster is asked.
    if module.params["daily_limit_usd"] is not None:
        amount(module.params["daily_limit_usd"])
    if state == "renamed":
        normalise(module.params["to"])
    this = Run(module, Cluster(module, "hearth-person"))
    result = {"present": this.present, "absent": this.absent, "renamed": this.renamed}[state](emails)
    this.settle()
    return {
        "changed": result["changed"] or bool(this.after),
        "done": this.done,
        "emails": result["emails"],
        "locked_since": this.locked_since,
        "diff": this.diff(result["diff"]),
    }


def argument_spec() -> dict[str, Any]:
    return {
        "emails": {"type": "list", "elements": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent", "renamed"], "default": "present"},
        "to": {"type": "str"},
        "alias": {"type": "str"},
        "daily_limit_usd": {"type": "str"},
        "delete_data": {"type": "bool", "default": False},
        "wait_s": {"type": "float", "default": 20},
        **AUTH_SPEC,
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (ClusterError, EmailError, PeopleError, WhitelistError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
