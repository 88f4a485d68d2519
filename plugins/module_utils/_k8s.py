# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The only file that knows the Kubernetes client: a few verbs over kubernetes.core's client.

kubernetes.core gives the connection (kubeconfig, `K8S_AUTH_*` variables, discovery with its cache) and the
server-side dry run in check mode. Objects go in and out as plain dictionaries. Every failure is a ClusterError
whose text is one sentence; only a module's `main` turns it into `fail_json`.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.kubernetes.core.plugins.module_utils.k8s.client import get_api_client
from ansible_collections.kubernetes.core.plugins.module_utils.k8s.core import AnsibleK8SModule
from ansible_collections.kubernetes.core.plugins.module_utils.k8s.exceptions import CoreException

try:
    import yaml
    from kubernetes.client.exceptions import ApiException
    from kubernetes.dynamic.exceptions import DynamicApiError, ResourceNotFoundError
    from urllib3.exceptions import HTTPError
except ImportError:
    # AnsibleK8SModule reports what is missing before any of these is needed.
    yaml = None  # type: ignore[assignment]

    class ApiException(Exception):  # type: ignore[no-redef]
        pass

    class DynamicApiError(Exception):  # type: ignore[no-redef]
        pass

    class ResourceNotFoundError(Exception):  # type: ignore[no-redef]
        pass

    class HTTPError(Exception):  # type: ignore[no-redef]
        pass


Object = dict[str, Any]

# Options of every module that talks to a cluster. kubernetes.core hides the kubeconfig's *path* too, and with it
# every message that names it; a path is no secret.
AUTH_SPEC: dict[str, Any] = {"kubeconfig": {"type": "path"}, "context": {"type": "str"}}

CONNECT_TIMEOUT_S = 5.0


class ClusterError(Exception):
    """Why the API server did not do what was asked. `status` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NoClusterError(ClusterError):
    """There is no cluster to talk to: no kubeconfig, or nobody answers at its address."""


def _explain(error: Any) -> str:
    """The message of the API's Status object, which names object and field, or the bare reason."""
    try:
        message = json.loads(error.body)["message"]
    except (ValueError, KeyError, TypeError):
        message = getattr(error, "reason", None)
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


class Cluster:
    """A few verbs. With `dry_run` (check mode) writes are checked by the API server and not stored."""

    def __init__(self, module: AnsibleK8SModule, field_manager: str) -> None:
        """Connect.

        :raises NoClusterError: no kubeconfig, or nobody answers within 5 s.
        :raises ClusterError: credentials refused, or another answer that is no API server's.
        """
        kubeconfig = module.params["kubeconfig"] or os.environ.get("K8S_AUTH_KUBECONFIG")
        if kubeconfig:
            if not Path(kubeconfig).is_file():
                raise NoClusterError(f"there is no kubeconfig at {kubeconfig}: deploy the cluster first, or name another file")
            _require_listener(*api_address(kubeconfig, module.params["context"]))
        self.field_manager = field_manager
        try:
            self._client = get_api_client(module=module)
        except CoreException as error:
            raise NoClusterError(str(error)) from None
        except (ApiException, DynamicApiError) as error:
            raise ClusterError(f"the API server refuses the kubeconfig's credentials ({_explain(error)})", error.status) from None
        except (HTTPError, OSError) as error:
            raise NoClusterError(f"the API server does not answer: {error}") from None
        self.dry_run: bool = self._client.dry_run

    def _resource(self, api_version: str, kind: str) -> Any:
        try:
            return self._client.resource(kind, api_version)
        except ResourceNotFoundError:
            raise ClusterError(f"the cluster knows no {kind} of {api_version}", 404) from None

    def _call(self, doing: str, verb: Any, **arguments: Any) -> Any:
        try:
            return verb(**arguments)
        except (ApiException, DynamicApiError) as error:
            raise ClusterError(f"cannot {doing}: {_explain(error)}", int(error.status or 0)) from None
        except (HTTPError, OSError) as error:
            raise ClusterError(f"cannot {doing}: the API server does not answer ({error})") from None

    def _writing(self) -> dict[str, Any]:
        options: dict[str, Any] = {"field_manager": self.field_manager}
        return {**options, "dry_run": "All"} if self.dry_run else options

    @staticmethod
    def _title(kind: str, namespace: str | None, name: str) -> str:
        return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """One object, or None when it (or its namespace) does not exist."""
        resource = self._resource(api_version, kind)
        try:
            found = self._call(f"read {self._title(kind, namespace, name)}", resource.get, name=name, namespace=namespace, serialize=False)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise
        return dict(json.loads(found.data))

    def find(self, api_version: str, kind: str, selector: str, namespace: str | None = None) -> list[Object]:
        """All objects of a kind with the labels; none when the cluster does not know the kind."""
        try:
            resource = self._resource(api_version, kind)
        except ClusterError:
            return []
        found = self._call(f"list {kind}", resource.get, namespace=namespace, label_selector=selector, serialize=False)
        # A list leaves kind and version out of its items.
        return [{"apiVersion": api_version, "kind": kind, **item} for item in json.loads(found.data).get("items") or []]

    def apply(self, definition: Object) -> Object:
        """Server-side apply; the object as the API server stores it, or would store it.

        Fields that the definition names are taken over from whoever else set them: a change by hand is undone.
        """
        meta = definition["metadata"]
        resource = self._resource(definition["apiVersion"], definition["kind"])
        stored = self._call(
            f"apply {self._title(definition['kind'], meta.get('namespace'), meta['name'])}",
            resource.server_side_apply,
            body=definition, namespace=meta.get("namespace"), force_conflicts=True, serialize=False, **self._writing(),
        )  # fmt: skip
        return dict(json.loads(stored.data))

    def create(self, definition: Object) -> Object:
        """Create; a ClusterError with status 409 when it exists already."""
        meta = definition["metadata"]
        resource = self._resource(definition["apiVersion"], definition["kind"])
        doing = f"create {self._title(definition['kind'], meta.get('namespace'), meta['name'])}"
        namespace = meta.get("namespace")
        stored = self._call(doing, resource.create, body=definition, namespace=namespace, serialize=False, **self._writing())
        return dict(json.loads(stored.data))

    def replace(self, definition: Object) -> Object:
        """Replace; with a resourceVersion in it, a ClusterError with status 409 when somebody else was faster."""
        meta = definition["metadata"]
        resource = self._resource(definition["apiVersion"], definition["kind"])
        doing = f"change {self._title(definition['kind'], meta.get('namespace'), meta['name'])}"
        namespace = meta.get("namespace")
        stored = self._call(doing, resource.replace, body=definition, namespace=namespace, serialize=False, **self._writing())
        return dict(json.loads(stored.data))

    def delete(self, definition: Object) -> None:
        """Delete, with what it owns following in the background. Gone already is fine."""
        meta = definition["metadata"]
        resource = self._resource(definition["apiVersion"], definition["kind"])
        options: dict[str, Any] = {"propagation_policy": "Background"}
        if self.dry_run:
            options["dry_run"] = "All"
        try:
            self._call(
                f"delete {self._title(definition['kind'], meta.get('namespace'), meta['name'])}",
                resource.delete, name=meta["name"], namespace=meta.get("namespace"), serialize=False, **options,
            )  # fmt: skip
        except ClusterError as error:
            if error.status != 404:
                raise

    def logs(self, namespace: str, pod: str, container: str, previous: bool, lines: int) -> list[str]:
        """The last lines that a container wrote; empty when there are none to be had."""
        resource = self._resource("v1", "Pod")
        query = [("container", container), ("tailLines", lines), *([("previous", "true")] if previous else [])]
        try:
            found = self._call(
                f"read the log of {namespace}/{pod}", resource.log.get, name=pod, namespace=namespace, query_params=query, serialize=False
            )
        except ClusterError:
            return []
        return str(found.data.decode(errors="replace")).splitlines()
