"""Certificates, and a Redis server for the state of the head, for the tests with three hosts."""

from __future__ import annotations

import datetime as dt
import ipaddress
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_REDIS_UP_S = 10.0


def tls_environment(addresses: list[str], folder: Path) -> dict[str, str]:
    """Write a certificate for some addresses and the loopback; return the variables that make Ray use it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gtvray tests")])
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in [*addresses, "127.0.0.1"]]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / "certificate.pem"),
        "RAY_TLS_SERVER_KEY": str(folder / "key.pem"),
        "RAY_TLS_CA_CERT": str(folder / "certificate.pem"),
    }


@contextmanager
def redis_server(address: str, port: int, folder: Path) -> Iterator[str]:
    """Run a Redis server on an address of this machine; yields host:port."""
    options = ["--bind", address, "--port", str(port), "--dir", str(folder), "--save", "", "--protected-mode", "no"]
    process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _REDIS_UP_S
        ping = ["redis-cli", "-h", address, "-p", str(port), "ping"]
        while subprocess.run(ping, capture_output=True, text=True, check=False).stdout.strip() != "PONG":
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.1)
        yield f"{address}:{port}"
    finally:
        process.terminate()
        process.wait()
