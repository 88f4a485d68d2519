# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The gateway in a cluster, as the modules that work on people need it: its pods, and its own list of people.

People are kept in the gateway's store, which only the gateway opens. So the modules run its command in one of its pods
(`hearth-gateway person …`); addresses go to its standard input.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils import _names
from ansible_collections.homelab.hearth.plugins.module_utils._conditions import is_ready
from ansible_collections.homelab.hearth.plugins.module_utils._exec import ExecError, execute
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import Cluster, ClusterError, Object

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]

# A running gateway looks at its store every second, and cuts what is open within half a second more.
NOTICED_S = 1.5
# It looks at the files of its tokens every two seconds.
TOKENS_NOTICED_S = 2.5
SLEEP_S = 0.2
NO_LIMIT = "none"
# Exit status of a command that got SIGKILL, which is how a container's memory limit ends one.
KILLED = 137
DAILY = "money_per_day_usd"

# Runs in the gateway's pod: SHA-256 of each token's file. A file that the gateway takes for a token begins with a letter or digit.
HASHES = """
import hashlib, json, pathlib, sys
files = [path for path in pathlib.Path(sys.argv[1]).iterdir() if path.name[0].isalnum()]
print(json.dumps({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}))
"""

Person = dict[str, Any]


class PeopleError(Exception):
    """Why nothing was done about a person, or not everything."""


def amount(text: str) -> str | None:
    """A sum of US dollars as the gateway writes it; None for `none`.

    :raises PeopleError: not a sum.
    """
    if text.strip().lower() == NO_LIMIT:
        return None
    try:
        value = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or value < 0:
        raise PeopleError(f"daily_limit_usd: {text!r} is not a sum of dollars; give a number such as 2.50, or none for the house's limits")
    return format(value.normalize(), "f")


def limits_with(own: dict[str, Any] | None, house: dict[str, Any], daily: str | None) -> dict[str, Any] | None:
    """A person's own limits with this ceiling a day; None for the house's, which then apply.

    A person's limits replace the house's as a whole. So the other ceilings are copied: who gets one a day must not lose
    that of the month.
    """
    return None if daily is None else {**(house if own is None else own), DAILY: daily}


def same_limits(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether two sets of ceilings mean the same: 2.5 and "2.50" do."""

    def plain(limits: dict[str, Any] | None) -> dict[str, Decimal] | None:
        return None if limits is None else {key: Decimal(str(value)) for key, value in limits.items() if value is not None}

    return plain(one) == plain(other)


class Gateway:
    """The gateway that a cluster runs."""

    def __init__(self, cluster: Cluster, answering: bool = True) -> None:
        """Find it.

        :param answering: whether one of its pods has to be ready.
        :raises PeopleError: there is none.
        """
        self.cluster = cluster
        found = cluster.get("apps/v1", "Deployment", _names.GATEWAY, _names.GATEWAY_NAMESPACE)
        where = f"Deployment {_names.GATEWAY_NAMESPACE}/{_names.GATEWAY}"
        if found is None:
            raise PeopleError(f"there is no gateway in this cluster ({where}): deploy it with site.yml first")
        self.deployment: Object = found
        if answering and not any(is_ready(pod) for pod in self.pods()):
            raise PeopleError(f"no pod of the gateway is ready ({where}): see what keeps it with site.yml, or kubectl describe")

    def pods(self, leaving: bool = False) -> list[Object]:
        """Its pods that stay, or those on their way out."""
        labels = self.deployment["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found = self.cluster.find("v1", "Pod", selector, _names.GATEWAY_NAMESPACE)
        return [pod for pod in found if bool(pod["metadata"].get("deletionTimestamp")) == leaving]

    def run(self, pod: Object, command: list[str], line: str = "") -> str:
        said: str = execute(self.cluster, _names.GATEWAY_NAMESPACE, pod["metadata"]["name"], _names.GATEWAY, command, line)
        return said

    # --- people

    def person(self, action: str, email: str = "", *options: str) -> dict[str, Any]:
        """What `hearth-gateway person ACTION` answers.

        :raises PeopleError: in the gateway's own words.
        """
        [pod, *_others] = [pod for pod in self.pods() if is_ready(pod)] or [None]
        if pod is None:
            raise PeopleError("the gateway's pod went away in the middle of this; run again")
        command = [_names.GATEWAY_COMMAND, "person", action, *(["-"] if email else []), *options]
        try:
            said = self.run(pod, [*command, "--config", _names.GATEWAY_CONFIG_FILE, "--json"], email)
            return dict(json.loads(said))
        except ExecError as error:
            if error.code == KILLED:
                raise PeopleError("the gateway's command was killed in its pod, most likely for want of memory: raise "
                                  "gateway_resources.limits.memory, or run again when it has less to do") from None  # fmt: skip
            raise PeopleError(f"the gateway refuses: {error.said.removeprefix('hearth-gateway: ') or error}") from None
        except ValueError:
            raise PeopleError("the gateway's answer cannot be read: are gateway and collection of one version?") from None

    def people(self) -> dict[str, Person]:
        """Everybody whom the gateway knows, by address."""
        return {person["email"]: person for person in self.person("list")["people"]}

    def house_limits(self) -> dict[str, Any]:
        """The ceilings of people who have none of their own."""
        for volume in self.deployment["spec"]["template"]["spec"].get("volumes") or []:
            name = (volume.get("configMap") or {}).get("name") or ""
            if name.startswith(_names.GATEWAY_CONFIG_MAP):
                stored = self.cluster.get("v1", "ConfigMap", name, _names.GATEWAY_NAMESPACE) or {}
                config = yaml.safe_load((stored.get("data") or {}).get(_names.GATEWAY_CONFIG_KEY) or "{}")
                return dict((config.get("limits") or {}).get("person") or {})
        raise PeopleError("the gateway's configuration is not where this version of the collection puts it: run site.yml first")

    # --- tokens

    def tokens_dir(self) -> str:
        """Where its pods have the tokens, one file each."""
        spec = self.deployment["spec"]["template"]["spec"]
        names = {v["name"] for v in spec.get("volumes") or [] if (v.get("secret") or {}).get("secretName") == _names.TOKENS_SECRET}
        for container in spec["containers"]:
            for mount in container.get("volumeMounts") or []:
                if mount["name"] in names:
                    return str(mount["mountPath"])
        raise PeopleError("the gateway does not mount its tokens where this version of the collection puts them: run site.yml first")

    def wait_for_tokens(self, wanted: Callable[[dict[str, str]], bool], timeout_s: float) -> None:
        """Wait until all pods of the gateway have the tokens as wanted, and have looked at them.

        :param wanted: whether the files are as they shall be; by name, SHA-256 of the content. Values stay in the pod.
        :raises PeopleError: a pod has not got them in time.
        """
        directory, deadline = self.tokens_dir(), time.monotonic() + timeout_s

        def has_them(pod: Object) -> bool:
            hashes = self._hashes(pod, directory)
            return hashes is not None and wanted(hashes)

        while behind := [pod["metadata"]["name"] for pod in self.pods() if is_ready(pod) and not has_them(pod)]:
            if time.monotonic() > deadline:
                raise PeopleError(
                    f"the change is written, but after {timeout_s:.0f} s pod {', '.join(behind)} has not got it; run again"
                )
            time.sleep(SLEEP_S)
        time.sleep(TOKENS_NOTICED_S)

    def _hashes(self, pod: Object, directory: str) -> dict[str, str] | None:
        # The container's own interpreter: an image may have no shell.
        interpreter = _names.GATEWAY_COMMAND.rpartition("/")[0] + "/python"
        try:
            return dict(json.loads(self.run(pod, [interpreter, "-c", HASHES, directory])))
        except (ClusterError, ValueError):
            # A pod that is just ending; it is asked again, or is gone from the list then.
            return None
