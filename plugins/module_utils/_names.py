# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names inside the cluster, for modules that work on people and on the gateway.

The truth is contract/names.yml, which does not travel with a module; a unit test compares the two.
"""

from __future__ import annotations

GATEWAY_NAMESPACE = "hearth"
GATEWAY = "gateway"  # the Deployment, and the container in its pods
GATEWAY_COMMAND = "/opt/hearth/bin/hearth-gateway"
GATEWAY_CONFIG_FILE = "/etc/hearth/gateway.yaml"
GATEWAY_CONFIG_MAP = "gateway-config"  # the beginning of the name; a hash of the content follows
GATEWAY_CONFIG_KEY = "gateway.yaml"
TOKENS_SECRET = "gateway-tokens"  # noqa: S105  (a name)

ACCESS_NAMESPACE = "public-ingress"
WHITELIST = "oauth2-proxy-emails"
WHITELIST_KEY = "restricted_user_access"
SIGN_IN_INSTANCES = ("oauth2-proxy-chat", "oauth2-proxy-apps")  # Deployments, and the Secrets of the same name
COOKIE_KEY = "cookie-secret"
