# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A certificate authority for one house, and certificates of it. No Ansible, no Kubernetes, no clock of its own."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    MISSING: str | None = None
except ImportError:  # pragma: no cover  (Ansible itself needs it for its vault)
    MISSING = "cryptography"

Moment = datetime.datetime

CA_DAYS = 3650
# Apple's devices take at most 825 from an authority that somebody installed.
DAYS = 800
RENEW_BEFORE_DAYS = 300
# Clocks of phones run behind.
BACKDATED = datetime.timedelta(hours=24)


class CertificateError(ValueError):
    """A key or certificate that cannot be used; the text names it and never its content."""


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM. The key never leaves Secrets."""

    certificate: str
    key: str


def new_authority(now: Moment, name: str) -> Pair:
    """A new authority, good for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    built = (
        _dated(subject, subject, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(built, key)


def new_certificate(authority: Pair, hosts: Sequence[str], now: Moment) -> Pair:
    """A certificate of the authority for these hosts; `*.` before a name stands for all names directly below it.

    :raises CertificateError: the authority's own certificate or key cannot be read, or it ends earlier.
    """
    ca, ca_key = _read(authority.certificate), _read_key(authority.key)
    if ca.not_valid_after_utc < now + datetime.timedelta(days=DAYS):
        raise CertificateError("the authority ends before a new certificate would")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    built = (
        _dated(subject, ca.subject, key.public_key(), now, DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _pair(built, key)


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    """:raises x509.ExtensionNotFound: when it names none."""
    names: list[str] = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    return names


def unfit(pair: Pair | None, authority: Pair, hosts: Sequence[str], now: Moment) -> str | None:
    """Why a certificate has to be made anew, or None when it is still good."""
    if pair is None:
        return "there is none"
    try:
        certificate, key = _read(pair.certificate), _read_key(pair.key)
    except CertificateError as error:
        return str(error)
    if certificate.public_key() != key.public_key():
        return "its key is another one's"
    try:
        certificate.verify_directly_issued_by(_read(authority.certificate))
        names = _hosts_of(certificate)
    except (ValueError, TypeError, InvalidSignature):
        return "it is of another authority"
    except x509.ExtensionNotFound:
        return "it is for no host"
    if set(names) != set(hosts):
        return f"it is for {', '.join(names)}"
    if certificate.not_valid_after_utc < now + datetime.timedelta(days=RENEW_BEFORE_DAYS):
        return f"it ends on {certificate.not_valid_after_utc:%Y-%m-%d}"
    return None


def given_problems(certificate_pem: str, key_pem: str, hosts: Sequence[str], now: Moment) -> list[str]:
    """Why browsers would not take a certificate that somebody gave, with its chain behind it, for these hosts; ends of sentences."""
    try:
        certificate, *_chain = x509.load_pem_x509_certificates(certificate_pem.encode())
    except ValueError:
        return ["the certificate cannot be read"]
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    except TypeError:
        return ["the private key is protected by a password; give it without one, and keep it in a vault file"]
    except (ValueError, UnsupportedAlgorithm):
        return ["the private key cannot be read"]
    found = []
    if certificate.public_key() != key.public_key():
        found.append("the private key is not that of the first certificate")
    if certificate.not_valid_after_utc <= now:
        found.append(f"the certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
    try:
        names = _hosts_of(certificate)
    except (ValueError, x509.ExtensionNotFound):
        names = []
    known = {name.lower() for name in names}
    missing = [host for host in hosts if host not in known and f"*.{host.partition('.')[2]}" not in known]
    if missing:
        found.append(f"the certificate is not for {', '.join(missing)} but for {', '.join(sorted(known)) or 'no host'}")
    return found


def fingerprint(certificate: str) -> str:
    """SHA-256 in pairs with colons, as phones and browsers show it."""
    return _read(certificate).fingerprint(hashes.SHA256()).hex(":").upper()


def ends(certificate: str) -> str:
    return f"{_read(certificate).not_valid_after_utc:%Y-%m-%d}"


def check_authority(authority: Pair) -> None:
    """Refuse what cannot sign.

    :raises CertificateError: says what is wrong with it.
    """
    certificate, key = _read(authority.certificate), _read_key(authority.key)
    if certificate.public_key() != key.public_key():
        raise CertificateError("certificate and key do not belong together")
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise CertificateError("the certificate is no authority's")


def _dated(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: Moment, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(certificate.public_bytes(encoding).decode(), private.decode())


def _read(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        raise CertificateError("the certificate cannot be read") from None


def _read_key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError):
        raise CertificateError("the key cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the key is of another kind")
    return key
