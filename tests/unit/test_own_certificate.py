"""Certificates of a house's own authority, against a cluster in memory and with real cryptography."""

from __future__ import annotations

import base64
import datetime
import json
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _access_problems, _certificates
from ansible_collections.homelab.hearth.plugins.module_utils._certificates import CertificateError, Pair
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import NoClusterError
from ansible_collections.homelab.hearth.plugins.modules import own_certificate
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.unit.fake_cluster import FakeCluster

Run = Callable[..., dict[str, Any]]
NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
HOSTS = ["chat.home.arpa", "*.home.arpa"]
CA, LEAF = ("Secret", "kube-system", "own-ca"), ("Secret", "kube-system", "own-certificate")


def later(days: int) -> datetime.datetime:
    return NOW + datetime.timedelta(days=days)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    fake.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}})
    fake.writes.clear()
    monkeypatch.setattr(own_certificate, "Cluster", fake.connect)
    return fake


@pytest.fixture
def make(run_module: Run, tmp_path: Path) -> Run:
    def run(**arguments: Any) -> dict[str, Any]:
        given = {"hosts": HOSTS, "ca_secret": CA[2], "secret": LEAF[2], "ca_file": str(tmp_path / "ca.crt"), **arguments}
        return run_module(own_certificate.main, **given)

    return run


def pair(cluster: FakeCluster, key: tuple[str, str, str]) -> Pair:
    found = own_certificate.stored_pair(cluster.objects[key])
    assert found is not None
    return found


def test_of_two_runs_at_the_same_moment_one_makes_the_authority(
    cluster: FakeCluster, make: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the file that people install could be of the authority that was written over."""
    other = _certificates.new_authority(NOW, "Hearth at home")
    create = cluster.create

    def beaten(wanted: dict[str, Any]) -> dict[str, Any]:
        monkeypatch.setattr(cluster, "create", create)
        create(own_certificate.definition(CA[2], CA[1], other))
        return create(wanted)

    monkeypatch.setattr(cluster, "create", beaten)
    result = make()
    assert not result.get("failed"), result
    assert [line.partition(" for ")[0] for line in result["made"]] == ["the certificate", f"the file {tmp_path / 'ca.crt'}"]
    assert pair(cluster, CA) == other
    assert (tmp_path / "ca.crt").read_text() == other.certificate
    assert _certificates.unfit(pair(cluster, LEAF), other, HOSTS, datetime.datetime.now(datetime.UTC)) is None


def test_a_browser_that_knows_the_authority_takes_the_certificate() -> None:
    """With the checks of OpenSSL: chain, purpose and name."""
    authority = _certificates.new_authority(NOW, "Hearth at home")
    made = _certificates.new_certificate(authority, HOSTS, NOW)
    store = x509.verification.Store([x509.load_pem_x509_certificate(authority.certificate.encode())])
    leaf = x509.load_pem_x509_certificate(made.certificate.encode())
    for host in ("chat.home.arpa", "board.home.arpa"):
        verifier = x509.verification.PolicyBuilder().store(store).time(NOW).build_server_verifier(x509.DNSName(host))
        assert verifier.verify(leaf, [])
    verifier = x509.verification.PolicyBuilder().store(store).time(NOW).build_server_verifier(x509.DNSName("bank.example.org"))
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(leaf, [])


def test_a_server_can_be_run_with_it(tmp_path: Path) -> None:
    made = _certificates.new_certificate(_certificates.new_authority(NOW, "x"), HOSTS, NOW)
    (tmp_path / "both.pem").write_text(made.certificate + made.key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "both.pem")


def test_devices_take_how_long_it_is_good_for() -> None:
    made = _certificates.new_certificate(_certificates.new_authority(NOW, "x"), HOSTS, NOW)
    leaf = x509.load_pem_x509_certificate(made.certificate.encode())
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc < datetime.timedelta(days=825), "Apple's devices refuse a longer one"
    assert leaf.not_valid_before_utc < NOW, "a phone's clock may run behind"


def test_an_authority_signs_nothing_that_outlives_it() -> None:
    with pytest.raises(CertificateError, match="the authority ends before"):
        _certificates.new_certificate(_certificates.new_authority(later(-3000), "x"), HOSTS, NOW)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda made, other, ca: (made, HOSTS, later(0)), None),
    (lambda made, other, ca: (made, HOSTS[::-1], later(400)), None),
    (lambda made, other, ca: (made, HOSTS, later(501)), "it ends on 2029-01-29"),
    (lambda made, other, ca: (made, HOSTS[:1], later(0)), r"it is for chat\.home\.arpa, \*\.home\.arpa"),
    (lambda made, other, ca: (None, HOSTS, later(0)), "there is none"),
    (lambda made, other, ca: (other, HOSTS, later(0)), "it is of another authority"),
    (lambda made, other, ca: (Pair(made.certificate, other.key), HOSTS, later(0)), "its key is another one's"),
    (lambda made, other, ca: (Pair("x", made.key), HOSTS, later(0)), "the certificate cannot be read"),
    (lambda made, other, ca: (Pair(made.certificate, "x"), HOSTS, later(0)), "the key cannot be read"),
])
def test_when_a_certificate_is_made_anew(change: Callable[..., Any], reason: str | None) -> None:
    ca = _certificates.new_authority(NOW, "x")
    made = _certificates.new_certificate(ca, HOSTS, NOW)
    other = _certificates.new_certificate(_certificates.new_authority(NOW, "x"), HOSTS, NOW)
    given, hosts, when = change(made, other, ca)
    found = _certificates.unfit(given, ca, hosts, when)
    if reason is None:
        assert found is None
    else:
        assert found and re.search(reason, found), found


def test_both_are_made_once_and_kept(cluster: FakeCluster, make: Run, tmp_path: Path) -> None:
    first = make()
    assert first["changed"] and cluster.writes == ["create Secret own-ca", "apply Secret own-certificate"]
    assert (tmp_path / "ca.crt").read_text() == pair(cluster, CA).certificate
    assert first["ca_fingerprint"] == _certificates.fingerprint(pair(cluster, CA).certificate)
    again = make()
    assert again["changed"] is False and again["made"] == []
    assert (again["ca_fingerprint"], again["ends"]) == (first["ca_fingerprint"], first["ends"])


def test_other_hosts_are_another_certificate_of_the_same_authority(cluster: FakeCluster, make: Run) -> None:
    make()
    before = pair(cluster, CA)
    result = make(hosts=["talk.home.arpa"])
    assert result["made"] == ["the certificate for talk.home.arpa: it is for chat.home.arpa, *.home.arpa"]
    assert pair(cluster, CA) == before, "everybody would have to install it again"


def test_no_key_in_a_result_or_on_the_disk(cluster: FakeCluster, make: Run, tmp_path: Path) -> None:
    shown = json.dumps([make(), make(hosts=["b.home.arpa"])])
    keys = [pair(cluster, key).key for key in (CA, LEAF)]
    body = [line for key in keys for line in key.splitlines()[1:-1]]
    assert body and not [line for line in body if line in shown]
    assert "PRIVATE KEY" not in shown + "".join(path.read_text() for path in tmp_path.iterdir())


def test_check_mode_makes_nothing(cluster: FakeCluster, make: Run, tmp_path: Path) -> None:
    result = make(check=True)
    assert result["changed"] and len(result["made"]) == 3 and cluster.writes == []
    assert not (tmp_path / "ca.crt").exists()
    assert result["ca_fingerprint"] == "", "that of a run would be another one"


def test_check_mode_without_a_cluster(monkeypatch: pytest.MonkeyPatch, make: Run) -> None:
    def nobody(module: Any, field_manager: str) -> None:
        raise NoClusterError("no cluster answers")

    monkeypatch.setattr(own_certificate, "Cluster", nobody)
    assert make(check=True)["changed"] is True
    assert make()["msg"] == "No cluster answers"


@pytest.mark.parametrize(("data", "why"), [
    ({}, "it does not hold tls.crt and tls.key"),
    ({"tls.crt": "!", "tls.key": "!"}, "it does not hold tls.crt and tls.key"),
    ({"tls.crt": base64.b64encode(b"x").decode(), "tls.key": base64.b64encode(b"y").decode()}, "the certificate cannot be read"),
])
def test_a_broken_authority_is_never_replaced_silently(cluster: FakeCluster, make: Run, data: dict[str, str], why: str) -> None:
    meta = {"name": CA[2], "namespace": CA[1]}
    cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    result = make()
    assert result["failed"] and why in result["msg"] and "put it back from a backup" in result["msg"]
    assert LEAF not in cluster.objects


def test_a_certificate_that_is_no_authority_signs_nothing(cluster: FakeCluster, make: Run) -> None:
    make()
    cluster.objects[CA]["data"] = dict(cluster.objects[LEAF]["data"])
    result = make()
    assert "the certificate is no authority's" in result["msg"]


def test_no_hosts_is_a_mistake(cluster: FakeCluster, make: Run) -> None:
    assert "say for which host names" in make(hosts=[])["msg"]


def test_a_file_that_cannot_be_written(cluster: FakeCluster, make: Run, tmp_path: Path) -> None:
    assert f"Cannot write {tmp_path}/no/ca.crt" in make(ca_file=str(tmp_path / "no" / "ca.crt"))["msg"]


# --- certificates that somebody gives


def test_a_given_certificate_that_browsers_would_refuse_is_told() -> None:
    """Traefik takes one of its own then, and a browser that saw HSTS lets nobody click that away."""
    authority = _certificates.new_authority(NOW, "Hearth at home")
    good, other = (_certificates.new_certificate(authority, HOSTS, NOW) for _ in range(2))
    hosts = ["chat.home.arpa", "lights.home.arpa"]

    def problems(certificate: str = good.certificate, key: str = good.key, **given: Any) -> list[str]:
        found: list[str] = _certificates.given_problems(certificate, key, given.get("hosts", hosts), given.get("now", NOW))
        return found

    assert problems() == problems(good.certificate + authority.certificate) == []
    assert problems(now=later(800)) == ["the certificate ended on 2029-01-29"]
    assert problems(key=other.key) == problems(authority.certificate + good.certificate, hosts=[]) == [
        "the private key is not that of the first certificate"
    ]
    assert problems(hosts=["chat.example.org", "a.b.home.arpa"]) == [
        "the certificate is not for chat.example.org, a.b.home.arpa but for *.home.arpa, chat.home.arpa"
    ]
    assert problems("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----") == ["the certificate cannot be read"]
    assert problems(key="-----BEGIN PRIVATE KEY-----\nbm8=\n-----END PRIVATE KEY-----") == ["the private key cannot be read"]
    loaded = serialization.load_pem_private_key(good.key.encode(), password=None)
    locked = loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    assert problems(key=locked.decode())[0].startswith("the private key is protected by a password")


def test_the_role_tells_it_by_the_names_of_its_variables() -> None:
    authority = _certificates.new_authority(NOW, "Hearth at home")
    made = _certificates.new_certificate(authority, ["chat.example.org"], NOW)
    given = {"tls": "given", "certificate_pem": made.certificate, "private_key_pem": made.key, "hosts": ["chat.home.arpa"],
             "edge_enabled": False, "now": NOW}  # fmt: skip
    [problem] = _access_problems._certificate(given)
    assert problem == (
        "certificate_pem, traefik_private_key_pem: the certificate is not for chat.home.arpa but for chat.example.org"
    )
    assert list(_access_problems._certificate({**given, "edge_enabled": True})) == []
