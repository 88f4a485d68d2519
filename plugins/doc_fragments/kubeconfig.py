# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation that the modules share which talk to a cluster."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of module_utils/_k8s.py, AUTH_SPEC."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description: >-
      Kubeconfig on the controller, with a client certificate, a token, or a plugin that fetches one (C(exec), as clouds
      have it). Without it E(K8S_AUTH_KUBECONFIG),
      E(KUBECONFIG) and C(~/.kube/config) count, in this order.
    type: path
  context:
    description: Context of the kubeconfig; its current one when absent.
    type: str
requirements:
  - PyYAML
"""
