"""TLS with a certificate authority of the test's own: a good certificate is served, a bad one hears nothing."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qlora_chat.delivery.sender import LogSender
from qlora_chat.settings import LogSettings, SettingsError
from tests.delivery.receiving import Receiver, outbox_in, record, wait_for

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *, authority: bool,
    days: tuple[int, int] = (-1, 1),
) -> x509.Certificate:  # fmt: skip
    named = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])  # noqa: E731
    alternative = x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    usage = x509.KeyUsage(True, False, False, False, False, authority, authority, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + days[0] * DAY)
        .not_valid_after(NOW + days[1] * DAY)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def pem(*parts: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    encoding = serialization.Encoding.PEM
    return b"".join(
        part.public_bytes(encoding)
        if isinstance(part, x509.Certificate)
        else part.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for part in parts
    )


@pytest.mark.parametrize("kind", ["good", "expired", "another host", "self-signed"])
def test_only_a_receiver_with_a_valid_certificate_receives_anything(kind: str, tmp_path: Path) -> None:
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = certificate("our-ca", ca_key, "our-ca", ca_key, authority=True)
    name = "192.0.2.1" if kind == "another host" else "127.0.0.1"
    days = (-3, -1) if kind == "expired" else (-1, 1)
    issuer, issuer_key = (name, key) if kind == "self-signed" else ("our-ca", ca_key)
    served = certificate(name, key, issuer, issuer_key, authority=False, days=days)
    (tmp_path / "ca.pem").write_bytes(pem(authority))
    (tmp_path / "server.pem").write_bytes(pem(served, key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with Receiver() as receiver, closing(outbox_in(tmp_path / "state")) as outbox:
        receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
        thread = threading.Thread(target=receiver.serve_forever, args=(0.02,))
        thread.start()
        outbox.put(record("confidential"))
        settings = LogSettings(f"https://127.0.0.1:{receiver.server_port}/", certificates=tmp_path / "ca.pem")
        notices: list[str] = []
        log = LogSender(outbox, settings, notices.append)
        wait_for(lambda: log.sent or log.failures)
        log.close()
        receiver.shutdown()
        thread.join()
        assert len(receiver.received) == (kind == "good")
        assert outbox.counts().waiting == (kind != "good")
        assert ("certificate is not good" in notices[0]) if kind != "good" else notices == []


def test_plain_http_is_accepted_for_loopback_only() -> None:
    with pytest.raises(SettingsError, match="unencrypted: use https"):
        LogSettings("http://example.com/log")
