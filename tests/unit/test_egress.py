"""Egress rules from a table."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _egress as egress


def test_a_name_opens_its_port_to_the_internet_and_to_nothing_at_home() -> None:
    [rule] = egress.rules([{"name": "vendor", "url": "https://api.anthropic.com"}])
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]
    four, six = (peer["ipBlock"] for peer in rule["to"])
    assert four["cidr"] == "0.0.0.0/0"
    for private in ("10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12", "169.254.0.0/16", "100.64.0.0/10"):
        assert private in four["except"]
    assert six["cidr"] == "::/0"
    assert "fc00::/7" in six["except"]


@pytest.mark.parametrize(
    ("url", "cidr", "port"),
    [
        ("https://192.0.2.7:8444", "192.0.2.7/32", 8444),
        ("http://192.0.2.7", "192.0.2.7/32", 80),
        ("https://[2001:db8::1]:8443/v1", "2001:db8::1/128", 8443),
    ],
)
def test_an_address_opens_itself_alone(url: str, cidr: str, port: int) -> None:
    assert egress.rules([{"name": "x", "url": url}]) == [
        {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"protocol": "TCP", "port": port}]}
    ]


def test_a_namespace_with_pods() -> None:
    row = {"name": "dns", "namespace": "kube-system", "pods": {"k8s-app": "kube-dns"}, "ports": [{"port": 53, "protocol": "udp"}, 53]}
    peer = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    assert egress.rules([row]) == [{"to": [peer], "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}]


def test_a_network_with_a_hole() -> None:
    row = {"name": "db", "cidr": "192.0.2.0/24", "except": ["192.0.2.1/32"], "ports": [5432]}
    assert egress.rules([row])[0]["to"] == [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.1/32"]}}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "x", "cidr": "192.0.2.0/24"}, "no ports"),
        ({"name": "x", "namespace": "a", "ports": []}, "no ports"),
        ({"name": "x"}, "exactly one of"),
        ({"name": "x", "cidr": "192.0.2.0/24", "namespace": "a", "ports": [1]}, "exactly one of"),
        ({"name": "x", "cidr": "192.0.2.7/24", "ports": [1]}, "host bits"),
        ({"name": "x", "cidr": "everything", "ports": [1]}, "everything"),
        ({"name": "x", "url": "api.anthropic.com"}, "not an http or https address"),
        ({"name": "x", "url": "https://host:port"}, "port"),
        ({"name": "x", "namespace": "a", "ports": [0]}, "0 is not a port"),
        ({"name": "x", "namespace": "a", "ports": ["http"]}, "'http' is not a port"),
        ({"name": "x", "namspace": "a", "ports": [1]}, "unknown namspace"),
    ],
)
def test_a_row_that_would_open_too_much_or_nothing_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(egress.EgressError, match=rf"egress row 2 \(x\): .*{message}"):
        egress.rules([{"name": "ok", "url": "https://192.0.2.7"}, row])
