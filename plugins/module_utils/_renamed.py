# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Variables that somebody brings along under another name, and what they are called here. The one table.

An old name would silently do nothing. The first part are our own former names; the second those of other k3s collections,
which are what most people have in their inventory when they come here.
"""

from __future__ import annotations

RENAMED = {
    # --- of this collection: none yet
    # --- of k3s-io/k3s-ansible, techno-tim/k3s-ansible and PyratLabs/ansible-role-k3s
    "airgap_dir": "k3s_airgap_dir",
    "api_endpoint": "k3s_registration_address",
    "apiserver_endpoint": "k3s_registration_address",
    "embedded_registry": "k3s_embedded_registry_enabled",
    "extra_agent_args": "k3s_config (in the group agents)",
    "extra_server_args": "k3s_config (in the group servers)",
    "flannel_iface": "k3s_config: {flannel-iface: …}",
    "k3s_agent": "k3s_config (in the group agents)",
    "k3s_airgap": "k3s_airgap_dir",
    "k3s_api_port": "k3s_config: {https-listen-port: …}",
    "k3s_control_node": "the groups servers and agents",
    "k3s_control_token": "k3s_token",
    "k3s_etcd_datastore": "k3s_datastore: etcd",
    "k3s_install_dir": "nothing: the binary is always /usr/local/bin/k3s",
    "k3s_master": "the groups servers and agents",
    "k3s_node": "the groups servers and agents",
    "k3s_registration_domain": "k3s_registration_address",
    "k3s_release_version": "k3s_version",
    "k3s_runtime_config": "k3s_config",
    "k3s_server": "k3s_config (in the group servers)",
    "k3s_server_location": "k3s_data_dir",
    "k3s_service_env_vars": "k3s_environment",
    "k3s_state": "nothing: run site.yml or playbooks/reset.yml",
    "registries_config_yaml": "k3s_registries",
    "server_config_yaml": "k3s_config (in the group servers)",
    "agent_config_yaml": "k3s_config (in the group agents)",
}
