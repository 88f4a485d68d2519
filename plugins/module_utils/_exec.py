# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run a command in a pod, as `kubectl exec -i` does: over a WebSocket to the API server.

kubernetes.core's module for that hands nothing to standard input, and an address must not stand in a command line (decision
16). The WebSocket is that of websocket-client, which the Kubernetes client uses for the same thing and brings along.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ansible.module_utils.basic import missing_required_lib
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, Cluster, ClusterError

try:
    import websocket
except ImportError:
    websocket = None  # type: ignore[assignment]

# Each message begins with a byte that says what it is. In this version nobody can say "standard input ends here", so a
# command has to read lines.
PROTOCOL = "v4.channel.k8s.io"
STDIN, STDOUT, STDERR, STATUS = range(4)


class ExecError(ClusterError):  # type: ignore[misc]
    """The command ran, and ended with something else than 0. `said` is what it wrote to standard error."""

    def __init__(self, message: str, code: int, said: str) -> None:
        super().__init__(message)
        self.code, self.said = code, said


def _address(cluster: Cluster, namespace: str, pod: str, container: str, command: Sequence[str]) -> str:
    query = [("container", container), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
    query += [("command", part) for part in command]
    path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}/exec?{urlencode(query)}"
    return f"wss{str(cluster.server.url).removeprefix('https')}{path}"


def _refusal(doing: str, error: Any) -> ClusterError:
    """The API server's own words for why there is no WebSocket."""
    try:
        message = json.loads(error.resp_body)["message"]
    except (ValueError, KeyError, TypeError):
        message = "no WebSocket"
    return ClusterError(f"cannot {doing}: HTTP {error.status_code}: {message}", error.status_code)


def _connect(cluster: Cluster, url: str, doing: str) -> Any:
    """A WebSocket to the API server.

    :raises ClusterError: it does not answer, or refuses.
    """
    parts, headers = urlsplit(url), [f"{name}: {value}" for name, value in cluster.server.headers.items()]
    link = None
    try:
        # Our own connection, as for the other requests: the library would go through the environment's proxy.
        link = socket.create_connection((str(parts.hostname), parts.port or 443), CONNECT_TIMEOUT_S)
        link = cluster.server.context.wrap_socket(link, server_hostname=parts.hostname)
        link.settimeout(ANSWER_TIMEOUT_S)
        return websocket.create_connection(url, socket=link, timeout=ANSWER_TIMEOUT_S, header=headers, subprotocols=[PROTOCOL])
    except (OSError, websocket.WebSocketException) as error:
        if link is not None:
            link.close()
        if isinstance(error, websocket.WebSocketBadStatusException):
            raise _refusal(doing, error) from None
        raise ClusterError(f"cannot {doing}: the API server does not answer ({error})") from None


def exit_code(status: dict[str, Any]) -> int | None:
    """The command's exit status in the API server's last word; None when it never ran."""
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or []:
        if cause.get("reason") == "ExitCode" and str(cause.get("message")).isdigit():
            return int(cause["message"])
    return None


def _collect(connection: Any) -> dict[int, bytes]:
    """All that comes until the command has ended, by what it is."""
    came: dict[int, bytes] = {}
    while STATUS not in came:
        opcode, message = connection.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            break
        if message:
            came[message[0]] = came.get(message[0], b"") + message[1:]
    return came


def execute(cluster: Cluster, namespace: str, pod: str, container: str, command: Sequence[str], line: str = "") -> str:
    """Run a command in a container and return what it wrote to standard output.

    :param line: goes to the command's standard input, with a line break. What nobody else may read stands here, and not in
        `command`, which is in the address, in the API server's audit log and in the list of processes.
    :raises ExecError: the command failed.
    :raises ClusterError: it was not run, or nobody knows.
    """
    doing = f"run {command[0].rpartition('/')[2]} in pod {namespace}/{pod}"
    if websocket is None:
        raise ClusterError(missing_required_lib("websocket-client"))
    connection = _connect(cluster, _address(cluster, namespace, pod, container, command), doing)
    try:
        connection.send_binary(bytes([STDIN]) + f"{line}\n".encode())
        came = _collect(connection)
    except (OSError, websocket.WebSocketException) as error:
        raise ClusterError(f"cannot {doing}: the connection broke ({error or type(error).__name__})") from None
    finally:
        connection.shutdown()
    if STATUS not in came:
        raise ClusterError(f"cannot {doing}: the connection ended before the command did; run again")
    status = json.loads(came[STATUS])
    code, said = exit_code(status), came.get(STDERR, b"").decode(errors="replace").strip()
    if code is None:
        raise ClusterError(f"cannot {doing}: {status.get('message') or status.get('reason') or 'no reason given'}")
    if code:
        raise ExecError(f"cannot {doing}: it ended with status {code}{': ' + said if said else ''}", code, said)
    return came.get(STDOUT, b"").decode(errors="replace")
