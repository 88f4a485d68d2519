# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation that the modules share which read or write the list of people."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of module_utils/_whitelist.py, LIST_SPEC."""

    DOCUMENTATION = r"""
options:
  namespace:
    description: Namespace of the ConfigMap.
    type: str
    default: public-ingress
  name:
    description: Name of the ConfigMap.
    type: str
    default: oauth2-proxy-emails
  key:
    description: Key of the list in the ConfigMap.
    type: str
    default: restricted_user_access
"""
