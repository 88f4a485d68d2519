"""The certificates of a bed, made by openssl: one authority, one certificate for its services."""

from __future__ import annotations

from .common import run, write
from .state import Bed

DAYS = "30"


def make(bed: Bed) -> None:
    """Write ca.crt, ca.key, services.crt and services.key."""
    folder = bed.folder
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run(
        "openssl", "req", "-x509", "-new", *key, "-days", DAYS, "-subj", f"/CN=Hearth bed {bed.name}",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        "-keyout", folder / "ca.key", "-out", folder / "ca.crt",
    )  # fmt: skip
    run(
        "openssl", "req", "-new", *key, "-subj", "/CN=Hearth bed services",
        "-keyout", folder / "services.key", "-out", folder / "services.csr",
    )  # fmt: skip
    # Python 3.13 refuses a certificate without the key identifiers.
    write(
        folder / "services.ext",
        f"subjectAltName=IP:{bed.gateway}\nbasicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
    )
    run(
        "openssl", "x509", "-req", "-days", DAYS, "-in", folder / "services.csr", "-out", folder / "services.crt",
        "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial",
        "-extfile", folder / "services.ext",
    )  # fmt: skip
    for leftover in ("services.csr", "services.ext", "ca.srl"):
        (folder / leftover).unlink(missing_ok=True)
