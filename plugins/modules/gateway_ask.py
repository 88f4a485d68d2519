#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask the gateway one question and prove that the answer is streamed."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_ask
short_description: Ask the gateway one question and prove that the answer is streamed
version_added: 0.1.0
description:
  - Sends one question to an OpenAI-compatible chat API and reads the answer as a stream of events.
  - Fails unless the answer is complete (C([DONE])), holds words, carries no error event and arrives in
    more than one piece, so that a buffer somewhere on the way is noticed.
  - The way is either O(url), or the service proxy of the API server that O(kubeconfig) names. The token
    travels as C(x-api-key), because the API server deletes C(Authorization).
  - Needs nothing but Python's standard library and PyYAML. Run it on the controller.
options:
  url:
    description: Base address of the gateway, such as V(http://127.0.0.1:8080).
    type: str
  ca_file:
    description: PEM file with the authorities to trust for an C(https) O(url), instead of the system's.
    type: path
  kubeconfig:
    description: Kubeconfig of the cluster whose API server passes the question on.
    type: path
  context:
    description: Context of the kubeconfig; its current one when absent.
    type: str
  namespace:
    description: Namespace of the gateway's Service and of its token's Secret.
    type: str
    default: hearth
  service:
    description: Name of the gateway's Service.
    type: str
    default: gateway
  port:
    description: Port of the gateway's Service.
    type: int
    default: 8080
  token:
    description: Token to show to the gateway.
    type: str
  token_file:
    description: File on the controller that holds the token.
    type: path
  token_secret:
    description: Secret in O(namespace) that holds the token; needs O(kubeconfig). The value never leaves the module.
    type: dict
    suboptions:
      name:
        description: Name of the Secret.
        type: str
        required: true
      key:
        description: Key in the Secret.
        type: str
        required: true
  question:
    description: What to ask.
    type: str
    default: "In one short sentence: what is a hearth good for?"
  model:
    description: Model to ask; the first that the gateway offers when absent.
    type: str
  min_arrivals:
    description: The fewest separate arrivals on the wire that count as streamed.
    type: int
    default: 2
  timeout_s:
    description: Longest silence, and longest time for the whole answer, in seconds.
    type: float
    default: 90
attributes:
  check_mode:
    support: full
    description: Asks nothing and says what it would ask.
  diff_mode:
    support: none
    description: Nothing is changed.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Ask through the cluster's API server
  homelab.hearth.gateway_ask:
    kubeconfig: ~/.kube/hearth.yaml
    token_secret: {name: gateway-tokens, key: operator}
  delegate_to: localhost

- name: Ask a gateway on this machine
  homelab.hearth.gateway_ask:
    url: http://127.0.0.1:8080
    token_file: ~/.local/share/hearth-trial/tokens/operator
    question: What is the capital of Korea?
    model: sonnet
"""

RETURN = r"""
asked:
  description: Whether the question was sent; V(false) in check mode.
  returned: always
  type: bool
answer:
  description: The words of the answer.
  returned: when asked
  type: str
model:
  description: Model that answered, as the gateway names it.
  returned: when asked
  type: str
provider:
  description: Provider that served, from the header C(x-hearth-provider).
  returned: when asked
  type: str
first_token_ms:
  description: Milliseconds from the request to the first word.
  returned: when asked
  type: int
total_ms:
  description: Milliseconds from the request to the end of the answer.
  returned: when asked
  type: int
chunks:
  description: Events that carried words.
  returned: when asked
  type: int
arrivals:
  description: Separate arrivals on the wire that carried words.
  returned: when asked
  type: int
where:
  description: Address that was asked, without credentials.
  returned: always
  type: str
"""

import ssl
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.homelab.hearth.plugins.module_utils._ask import (
    AskError,
    Target,
    ask,
    first_model,
    read_secret,
    through,
)
from ansible_collections.homelab.hearth.plugins.module_utils._kubeconfig import ApiServer, KubeconfigError, read_kubeconfig
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]


def _load_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None


def _api_server(params: dict[str, Any]) -> ApiServer | None:
    if not params["kubeconfig"]:
        return None
    return read_kubeconfig(Path(params["kubeconfig"]), _load_yaml, params["context"])


def _target(params: dict[str, Any], api: ApiServer | None) -> Target:
    if api is not None:
        return through(api, params["namespace"], params["service"], params["port"])
    context = None
    if params["ca_file"]:
        try:
            context = ssl.create_default_context(cafile=params["ca_file"])
        except (OSError, ssl.SSLError) as error:
            raise AskError(f"ca_file {params['ca_file']} cannot be used: {error}") from None
    return Target(params["url"].rstrip("/"), context)


def _token(module: AnsibleModule, api: ApiServer | None) -> str:
    params = module.params
    if params["token"]:
        token = str(params["token"])
    elif params["token_file"]:
        try:
            token = Path(params["token_file"]).read_text().strip()
        except OSError as error:
            raise AskError(f"token_file cannot be read: {error}") from None
    else:
        if api is None:
            raise AskError("token_secret needs kubeconfig")
        token = read_secret(api, params["namespace"], params["token_secret"]["name"], params["token_secret"]["key"])
    if not token:
        raise AskError("the token is empty")
    module.no_log_values.add(token)
    return token


def _run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    if module.check_mode:
        # The cluster, or the process, may not exist yet: read neither kubeconfig nor token.
        service = f"Service {params['namespace']}/{params['service']}:{params['port']}"
        return {"asked": False, "where": params["url"] or service}
    api = _api_server(params)
    target = _target(params, api)
    token = _token(module, api)
    model = params["model"] or first_model(target, token, params["timeout_s"])
    answer = ask(target, token, params["question"], model, params["min_arrivals"], params["timeout_s"])
    return {
        "asked": True,
        "where": target.base,
        "answer": answer.text,
        "model": answer.model,
        "provider": answer.provider,
        "first_token_ms": answer.first_token_ms,
        "total_ms": answer.total_ms,
        "chunks": answer.chunks,
        "arrivals": answer.arrivals,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str"},
            "ca_file": {"type": "path"},
            "kubeconfig": {"type": "path"},
            "context": {"type": "str"},
            "namespace": {"type": "str", "default": "hearth"},
            "service": {"type": "str", "default": "gateway"},
            "port": {"type": "int", "default": 8080},
            "token": {"type": "str", "no_log": True},
            "token_file": {"type": "path", "no_log": False},
            "token_secret": {
                "type": "dict",
                # Names only.
                "no_log": False,
                "options": {
                    "name": {"type": "str", "required": True},
                    "key": {"type": "str", "required": True, "no_log": False},
                },
            },
            "question": {"type": "str", "default": "In one short sentence: what is a hearth good for?"},
            "model": {"type": "str"},
            "min_arrivals": {"type": "int", "default": 2},
            "timeout_s": {"type": "float", "default": 90},
        },
        required_one_of=[("url", "kubeconfig"), ("token", "token_file", "token_secret")],
        mutually_exclusive=[("url", "kubeconfig"), ("token", "token_file", "token_secret")],
        supports_check_mode=True,
    )
    if yaml is None and module.params["kubeconfig"]:
        module.fail_json(msg=missing_required_lib("PyYAML"))
    try:
        module.exit_json(changed=False, **_run(module))
    except (AskError, KubeconfigError) as error:
        module.fail_json(msg=f"{sentence(error)}.")


if __name__ == "__main__":
    main()
