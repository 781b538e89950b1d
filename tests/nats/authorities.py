"""Certificates of an authority that is made for a test, and signed credentials of users."""

import base64
import datetime
import ipaddress
import json
import os
import pathlib
import time
from typing import Any, Dict, Optional, Tuple

import nkeys  # type: ignore[import-untyped]  # it has no types
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


class Authority:
    """An authority, which signs certificates; all of them are files in a directory."""

    def __init__(self, directory: pathlib.Path, name: str = "ca") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Tests of persipubsub, {name}")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        builder = builder.add_extension(usage, critical=True).add_extension(identifier, critical=False)
        self.certificate = self._write(f"{name}.pem", builder)

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(
            key.public_key()).serial_number(
                x509.random_serial_number()).not_valid_before(now - DAY).not_valid_after(now + DAY))

    def _write(self, name: str, builder: x509.CertificateBuilder) -> pathlib.Path:
        path = self._directory / name
        certificate = builder.sign(self._key, hashes.SHA256())
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, name: str) -> Tuple[pathlib.Path, pathlib.Path]:
        """Return the certificate of a server on the loopback, or of a user, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), key)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        path = self._directory / f"{name}-key.pem"
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                              serialization.NoEncryption()))
        return self._write(f"{name}.pem", builder), path


def _pair(prefix: int) -> Tuple[Any, str]:
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    pair = nkeys.from_seed(bytearray(seed))
    return pair, pair.public_key.decode()


def _jwt(issuer: Any, subject: str, name: str, claims: Dict[str, Any]) -> str:

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    body = {
        "jti": name,
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "name": name,
        "sub": subject,
        "nats": {
            "version": 2,
            **claims
        }
    }
    signed = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}"
    signature = base64.urlsafe_b64encode(issuer.sign(signed.encode())).decode().rstrip("=")
    return f"{signed}.{signature}"


def operator(directory: pathlib.Path) -> Tuple[str, pathlib.Path]:
    """Return the configuration of a server whose users have signed credentials, and the credentials of one user."""
    (boss, boss_id), (_, system_id) = _pair(nkeys.PREFIX_BYTE_OPERATOR), _pair(nkeys.PREFIX_BYTE_ACCOUNT)
    (account, account_id), (user, user_id) = _pair(nkeys.PREFIX_BYTE_ACCOUNT), _pair(nkeys.PREFIX_BYTE_USER)
    limits = {
        name: -1
        for name in ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "disk_storage",
                     "streams", "consumer")
    }
    claims = {"type": "account", "limits": {**limits, "wildcards": True}}
    accounts = {
        account_id:
        _jwt(boss, account_id, "orders", claims),
        system_id:
        _jwt(boss, system_id, "system", {
            "type": "account",
            "limits": {
                **limits, "mem_storage": 0,
                "disk_storage": 0
            }
        }),
    }
    own = _jwt(boss, boss_id, "operator", {"type": "operator", "system_account": system_id})
    token = _jwt(account, user_id, "user", {"type": "user", "subs": -1, "data": -1, "payload": -1})
    path = directory / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n",
        encoding="utf-8")
    preload = "\n".join(f"  {name}: {value}" for name, value in accounts.items())
    return (f"operator: {own}\nsystem_account: {system_id}\nresolver: MEMORY\n"
            f"resolver_preload: {{\n{preload}\n}}\n"), path


def tls(certificate: pathlib.Path, key: pathlib.Path, ca: Optional[pathlib.Path] = None) -> str:
    """Return the configuration of a server with TLS.

    :param ca: the authority of its users; None: it asks them for no certificates
    """
    verify = "" if ca is None else f'ca_file: "{ca}", verify: true'
    return f'tls {{ cert_file: "{certificate}", key_file: "{key}", {verify} }}'
