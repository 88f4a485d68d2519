# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The only file that talks to the API server about objects: a few verbs over one kept connection.

Standard library and PyYAML. The Kubernetes client does the same, but importing it, kubernetes.core around it and its
discovery cost two seconds in every task (decision 9). Objects go in and out as plain dictionaries. Every failure is a
ClusterError whose text is one sentence; only a module's `main` turns it into `fail_json`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.homelab.hearth.plugins.module_utils._kubeconfig import KubeconfigError, read_kubeconfig
from ansible_collections.homelab.hearth.plugins.module_utils._objects import mounts, written_at

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]

Object = dict[str, Any]

# Options of every module that talks to a cluster; documented in the fragment `kubeconfig`.
AUTH_SPEC: dict[str, Any] = {"kubeconfig": {"type": "path"}, "context": {"type": "str"}}

CONNECT_TIMEOUT_S = 5.0
# Writes to a busy single node with a slow disk take seconds; a server that is silent for this long is not coming back.
ANSWER_TIMEOUT_S = 60.0
# How often a request is sent again that the API server asks to repeat (too many requests, or just starting).
ATTEMPTS = 4
LONGEST_PAUSE_S = 10.0
# How often a change is begun again because somebody else was faster. Enough for twenty operators at once; each
# attempt costs some 10 ms.
RACES = 60

# Labels of what modules make for themselves. No component label: no role renders such an object, so none may prune it.
LABELS = {"app.kubernetes.io/part-of": "hearth", "app.kubernetes.io/managed-by": "hearth"}


class ClusterError(Exception):
    """Why the API server did not do what was asked. `status` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NoClusterError(ClusterError):
    """There is no cluster to talk to: no kubeconfig, or nobody answers at its address."""


class Refusal(Exception):
    """An answer of the API server that is no success."""

    def __init__(self, status: int, reason: str, body: bytes, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.body, self.retry_after_s = status, reason, body, retry_after_s


def _explain(error: Any) -> str:
    """The message of the API's Status object, which names object and field, or the bare reason."""
    try:
        message = json.loads(error.body)["message"]
    except (ValueError, KeyError, TypeError):
        message = error.reason
    return f"HTTP {error.status}: {message}"


def api_address(kubeconfig: str, context: str | None = None) -> tuple[str, int]:
    """Host and port of the API server that a kubeconfig names.

    :raises ClusterError: the file is not a kubeconfig.
    """
    try:
        config = yaml.safe_load(Path(kubeconfig).read_text())
        wanted = context or config["current-context"]
        chosen = next(entry["context"] for entry in config["contexts"] if entry["name"] == wanted)
        server = next(entry["cluster"]["server"] for entry in config["clusters"] if entry["name"] == chosen["cluster"])
        parts = urlsplit(server)
        return str(parts.hostname), parts.port or 443
    except StopIteration:
        raise ClusterError(f"the kubeconfig {kubeconfig} has no context {wanted!r} with a cluster") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ClusterError(f"{kubeconfig} is not a kubeconfig ({type(error).__name__})") from None


def _require_listener(host: str, port: int) -> None:
    # The client retries three times with the system's time limits: minutes for a host that is switched off.
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise NoClusterError(
            f"no cluster answers at {host}:{port} ({why}): is the server on, and the kubeconfig that of this cluster?"
        ) from None


def _load_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(type(error).__name__) from None


def _kubeconfig_path(given: str | None) -> Path:
    """The file given, else what the environment names, else kubectl's own.

    :raises NoClusterError: there is none.
    """
    path = given or os.environ.get("K8S_AUTH_KUBECONFIG")
    if not path:
        named = [entry for entry in os.environ.get("KUBECONFIG", "").split(os.pathsep) if entry]
        path = next((entry for entry in named if Path(entry).is_file()), named[0] if named else "~/.kube/config")
    found = Path(path).expanduser()
    if not found.is_file():
        raise NoClusterError(f"there is no kubeconfig at {found}: deploy the cluster first, or name another file")
    return found


class Connection:
    """JSON requests over one connection that is kept, and opened again when the server closed it in between."""

    def __init__(self, url: str, context: ssl.SSLContext, headers: dict[str, str]) -> None:
        """Connect.

        :raises OSError: nobody answers, or not with a certificate that is trusted.
        """
        parts = urlsplit(url)
        self._prefix, self._headers = parts.path, headers
        self._http = http.client.HTTPSConnection(str(parts.hostname), parts.port, timeout=ANSWER_TIMEOUT_S, context=context)
        self._http.connect()

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> bytes:
        """Send one request and return the body of its answer.

        :raises Refusal: any status but success.
        :raises OSError: no answer.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(method, path, body, content_type)
            except Refusal as refusal:
                # 429 and, while it starts, 503: with Retry-After nothing was done yet.
                if refusal.retry_after_s is None or attempt == ATTEMPTS:
                    raise
                time.sleep(min(refusal.retry_after_s, LONGEST_PAUSE_S))
            except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
                self._http.close()
                # A kept connection may have been closed meanwhile. A POST may have been carried out: that is not repeated.
                if method == "POST" or attempt > 1:
                    raise OSError(str(error) or type(error).__name__) from error
        raise AssertionError("the last attempt returns or raises")

    def _once(self, method: str, path: str, body: Any, content_type: str) -> bytes:
        headers = {**self._headers, "Accept": "application/json"}
        payload = None
        if body is not None:
            payload, headers["Content-Type"] = json.dumps(body).encode(), content_type
        try:
            self._http.request(method, self._prefix + path, payload, headers)
            response = self._http.getresponse()
            content = response.read()
        except TimeoutError:
            # What still comes would be taken for the answer to the next request.
            self._http.close()
            raise
        if http.client.OK <= response.status < http.client.MULTIPLE_CHOICES:
            return content
        pause = None
        with contextlib.suppress(ValueError):
            pause = float(response.headers.get("Retry-After", ""))
        raise Refusal(response.status, response.reason, content, pause)


class Cluster:
    """A few verbs. With `dry_run` (check mode) writes are checked by the API server and not stored."""

    def __init__(self, module: AnsibleModule, field_manager: str) -> None:
        """Connect.

        :raises NoClusterError: no kubeconfig, or nobody answers within 5 s.
        :raises ClusterError: a kubeconfig that cannot be used.
        """
        if yaml is None:
            raise ClusterError(missing_required_lib("PyYAML"))
        path, context = _kubeconfig_path(module.params["kubeconfig"]), module.params["context"]
        _require_listener(*api_address(str(path), context))
        self.field_manager = field_manager
        try:
            self.server = read_kubeconfig(path, _load_yaml, context)
            self._connection = Connection(self.server.url, self.server.context, self.server.headers)
        except KubeconfigError as error:
            raise ClusterError(str(error)) from None
        except ssl.SSLCertVerificationError as error:
            raise NoClusterError(f"the certificate of the API server is not trusted: {error.verify_message}") from None
        except OSError as error:
            raise NoClusterError(f"the API server does not answer: {error}") from None
        self.dry_run: bool = module.check_mode
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}

    # --- addresses

    def _collection(self, api_version: str, kind: str, namespace: str | None) -> str:
        """The address of all objects of a kind, in a namespace when it has one and one is given.

        :raises ClusterError: the cluster does not know the kind.
        """
        base = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        if api_version not in self._kinds:
            try:
                listed = json.loads(self._call(f"look up {api_version}", "GET", base))["resources"]
            except ClusterError as error:
                if error.status != http.client.NOT_FOUND:
                    raise
                listed = []
            # Names with a slash are parts of other objects: deployments/scale.
            self._kinds[api_version] = {r["kind"]: (r["name"], r["namespaced"]) for r in listed if "/" not in r["name"]}
        if kind not in self._kinds[api_version]:
            raise ClusterError(f"the cluster knows no {kind} of {api_version}", http.client.NOT_FOUND)
        plural, namespaced = self._kinds[api_version][kind]
        return f"{base}/namespaces/{quote(namespace, safe='')}/{plural}" if namespace and namespaced else f"{base}/{plural}"

    def _address(self, definition: Object) -> str:
        meta = definition["metadata"]
        collection = self._collection(definition["apiVersion"], definition["kind"], meta.get("namespace"))
        return f"{collection}/{quote(meta['name'], safe='')}"

    def _call(self, doing: str, method: str, path: str, body: Any = None, content_type: str = "application/json") -> bytes:
        try:
            return self._connection.request(method, path, body, content_type)
        except Refusal as error:
            if error.status == http.client.UNAUTHORIZED:
                raise ClusterError(f"the API server refuses the kubeconfig's credentials ({_explain(error)})", error.status) from None
            raise ClusterError(f"cannot {doing}: {_explain(error)}", error.status) from None
        except OSError as error:
            raise ClusterError(f"cannot {doing}: the API server does not answer ({error})") from None

    @staticmethod
    def _title(definition: Object) -> str:
        kind, meta = definition["kind"], definition["metadata"]
        return f"{kind} {meta['namespace']}/{meta['name']}" if meta.get("namespace") else f"{kind} {meta['name']}"

    # --- reading

    def knows(self, api_version: str, kind: str) -> bool:
        """Whether the cluster has this kind."""
        try:
            self._collection(api_version, kind, None)
        except ClusterError as error:
            if error.status != http.client.NOT_FOUND:
                raise
            return False
        return True

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """One object, or None when it (or its namespace) does not exist."""
        wanted = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}}
        # Outside, so that a kind that nobody knows is told, and not taken for an object that is not there.
        address = self._address(wanted)
        try:
            found = self._call(f"read {self._title(wanted)}", "GET", address)
        except ClusterError as error:
            if error.status == http.client.NOT_FOUND:
                return None
            raise
        return dict(json.loads(found))

    def find(self, api_version: str, kind: str, selector: str, namespace: str | None = None) -> list[Object]:
        """All objects of a kind with the labels; none when the cluster does not know the kind."""
        if not self.knows(api_version, kind):
            return []
        address = self._collection(api_version, kind, namespace)
        found = self._call(f"list {kind}", "GET", f"{address}?{urlencode({'labelSelector': selector})}")
        # A list leaves kind and version out of its items.
        return [{"apiVersion": api_version, "kind": kind, **item} for item in json.loads(found).get("items") or []]

    def logs(self, namespace: str, pod: str, container: str, previous: bool, lines: int) -> list[str]:
        """The last lines that a container wrote; empty when there are none to be had."""
        return self._logs(namespace, pod, {"container": container, "tailLines": lines, **({"previous": "true"} if previous else {})})

    def logs_since(self, namespace: str, pod: str, container: str, since: str, most_bytes: int) -> list[str]:
        """The first lines that a container wrote since a time, as the API writes it; empty when there are none to be had."""
        return self._logs(namespace, pod, {"container": container, "sinceTime": since, "limitBytes": most_bytes})

    def _logs(self, namespace: str, pod: str, query: dict[str, Any]) -> list[str]:
        address = self._address({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": namespace}})
        try:
            found = self._call(f"read the log of {namespace}/{pod}", "GET", f"{address}/log?{urlencode(query)}")
        except ClusterError:
            return []
        return found.decode(errors="replace").splitlines()

    # --- writing

    def _write(
        self, doing: str, method: str, definition: Object, address: str, content_type: str = "application/json", **query: str
    ) -> Object:
        options = {"fieldManager": self.field_manager, **query, **({"dryRun": "All"} if self.dry_run else {})}
        path = f"{address}?{urlencode(options)}"
        return dict(json.loads(self._call(f"{doing} {self._title(definition)}", method, path, definition, content_type)))

    def apply(self, definition: Object) -> Object:
        """Server-side apply; the object as the API server stores it, or would store it.

        Fields that the definition names are taken over from whoever else set them: a change by hand is undone.
        """
        # JSON is YAML; the media type for JSON alone is younger than some servers.
        return self._write("apply", "PATCH", definition, self._address(definition), "application/apply-patch+yaml", force="true")

    def create(self, definition: Object) -> Object:
        """Create; a ClusterError with status 409 when it exists already."""
        namespace = definition["metadata"].get("namespace")
        return self._write("create", "POST", definition, self._collection(definition["apiVersion"], definition["kind"], namespace))

    def replace(self, definition: Object) -> Object:
        """Replace; with a resourceVersion in it, a ClusterError with status 409 when somebody else was faster."""
        return self._write("change", "PUT", definition, self._address(definition))

    def annotate(self, definition: Object, annotations: dict[str, str]) -> None:
        """Set annotations. An object that is gone already needs none."""
        meta = {**{key: definition["metadata"].get(key) for key in ("name", "namespace")}, "annotations": annotations}
        change = {"apiVersion": definition["apiVersion"], "kind": definition["kind"], "metadata": meta}
        try:
            self._write("annotate", "PATCH", change, self._address(change), "application/merge-patch+json")
        except ClusterError as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def merge(self, definition: Object, change: Object) -> Object:
        """Change the named fields of an object and leave the others; the object as it is then."""
        known = {"apiVersion": definition["apiVersion"], "kind": definition["kind"]}
        meta = {key: definition["metadata"].get(key) for key in ("name", "namespace")}
        body = {**known, **change, "metadata": {**meta, **change.get("metadata", {})}}
        return self._write("change", "PATCH", body, self._address(body), "application/merge-patch+json")

    def delete(self, definition: Object, grace_s: int | None = None) -> None:
        """Delete, with what it owns following in the background. Gone already is fine.

        :param grace_s: for a pod: the longest that its processes may take to end, in place of what the pod says.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if self.dry_run:
            options["dryRun"] = ["All"]
        try:
            self._call(f"delete {self._title(definition)}", "DELETE", self._address(definition), options)
        except ClusterError as error:
            if error.status != http.client.NOT_FOUND:
                raise


# --- what several modules do with these verbs


def until_undisturbed(attempt: Callable[[], Any], what: str) -> Any:
    """The result of an attempt that reads, changes and writes, begun again when somebody else wrote in between.

    :param attempt: raises a ClusterError with status 409 when what it read is no longer the newest.
    :param what: names what is changed, for the error.
    :raises ClusterError: it never rested.
    """
    for race in range(1, RACES + 1):
        try:
            return attempt()
        except ClusterError as error:
            if error.status != http.client.CONFLICT:
                raise
        # Apart by chance, so that the same two do not meet again.
        time.sleep(secrets.randbelow(20 + 10 * min(race, 20)) / 1000)
    raise ClusterError(f"{what} was changed by others {RACES} times in a row; run again", http.client.CONFLICT)


def ensure_namespace(cluster: Cluster, name: str, create: bool, way_out: str) -> bool:
    """Whether the namespace is there (now). False only in check mode: then it would be created.

    :param way_out: what to do about one that is missing, for the error.
    :raises ClusterError: it is not there, and was not to be created.
    """
    if cluster.get("v1", "Namespace", name) is not None:
        return True
    if not create:
        raise ClusterError(f"there is no namespace {name}: {way_out}")
    try:
        cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": LABELS}})
    except ClusterError as error:
        # Another operator made it in this very moment.
        if error.status != http.client.CONFLICT:
            raise
    return not cluster.dry_run


def hurry(cluster: Cluster, kind: str, namespace: str, name: str) -> list[str]:
    """Have the kubelets bring a changed ConfigMap or Secret into the pods that mount it; returns the pods told now.

    By itself a kubelet looks at a pod's volumes about once a minute. It also looks when the pod changes, so each pod
    is given the version as an annotation: the new content is in it within half a second. A pod that was made after the
    change, or has this version in its annotation, is left alone.
    """
    stored = cluster.get("v1", kind, name, namespace)
    if stored is None or cluster.dry_run:
        return []
    # The part behind the slash has at most 63 characters and ends in a letter or digit.
    key = f"{kind.lower()}-{name}"[:63].rstrip("-._")
    seen = {f"hearth.homelab/{key}": stored["metadata"]["resourceVersion"]}
    changed_at = written_at(stored)
    told = []
    for pod in cluster.find("v1", "Pod", "", namespace):
        meta = pod["metadata"]
        newer = changed_at and meta["creationTimestamp"] > changed_at
        if mounts(pod, kind, name) and not newer and not seen.items() <= (meta.get("annotations") or {}).items():
            cluster.annotate(pod, seen)
            told.append(f"{namespace}/{meta['name']}")
    return told
