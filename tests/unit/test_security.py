"""The security settings of librdkafka, followed by the worker's reader or refused."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from versolog.schemas.errors import Misconfigured
from versolog.streams.security import security

PASSWORD = {"sasl.username": "bob", "sasl.password": "secret"}


KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg9lU2TY0s9BSlqVNn
Pmhss2Ax2rgn/drcJGp1tQKfPJWhRANCAARwtzHI2x+bPE8YuguWMM598u3tKUTf
+jPWLqK8cvI6HVAZjTPdSs3rxJ54FuOvm+ib/WRj1kfamCZIQsSj7HUd
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBgDCCASWgAwIBAgIUUgzpeMbX22oRugzC+D37anZEI+EwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzIyMTA1NFoYDzIxMjYxMDMw
MjIxMDU0WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARwtzHI2x+bPE8YuguWMM598u3tKUTf+jPWLqK8cvI6HVAZjTPdSs3r
xJ54FuOvm+ib/WRj1kfamCZIQsSj7HUdo1MwUTAdBgNVHQ4EFgQUZYl/C5gtuDZk
J8ZiCKcNElMXNHYwHwYDVR0jBBgwFoAUZYl/C5gtuDZkJ8ZiCKcNElMXNHYwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAqZFMDPhi84VnTP3f7gUq
k8O8/zlGwJX4YjEO9dkrY1MCIQDO2reVLBh69urxC8JCo0Xe00+3AeKYplyqv4kH
BOOXNg==
-----END CERTIFICATE-----
"""
"""Of each other, of localhost, for a hundred years, and of no use."""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and its certificate in one file."""
    file = tmp_path / "certificate.pem"
    file.write_text(KEY + CERTIFICATE)
    return file


def test_nothing_is_plain_text_and_settings_of_other_kinds_are_left_alone() -> None:
    assert security({}) == {"security_protocol": "PLAINTEXT"}
    assert security({"client.id": "x", "socket.keepalive.enable": "true"}) == {"security_protocol": "PLAINTEXT"}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_a_password(mechanism: str, name: str) -> None:
    assert security({"security.protocol": "sasl_plaintext", name: mechanism} | PASSWORD) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": "bob",
        "sasl_plain_password": "secret",
    }


def test_kerberos() -> None:
    assert security({"security.protocol": "SASL_PLAINTEXT", "sasl.kerberos.service.name": "log"}) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "GSSAPI",
        "sasl_kerberos_service_name": "log",
    }


def test_tls_verifies_the_broker_and_its_name_unless_told_otherwise(certificate: Path) -> None:
    settings = {"security.protocol": "SSL", "ssl.ca.location": str(certificate)}
    context = security(settings)["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1
    context = security(settings | {"ssl.endpoint.identification.algorithm": "none"})["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)
    context = security(settings | {"enable.ssl.certificate.verification": "false"})["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


def test_tls_with_authorities_given_as_text_trusts_no_others() -> None:
    context = security({"security.protocol": "SSL", "ssl.ca.pem": CERTIFICATE})["ssl_context"]
    assert len(context.get_ca_certs()) == 1


def test_tls_with_a_certificate_of_the_clients_and_a_password(certificate: Path) -> None:
    settings = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "ssl.ca.location": str(certificate),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(certificate),
    }
    arguments = security(settings | PASSWORD)
    assert arguments["security_protocol"] == "SASL_SSL"
    assert arguments["sasl_plain_password"] == "secret"
    assert isinstance(arguments["ssl_context"], ssl.SSLContext)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}, "OAUTHBEARER"),
        ({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}, "sasl.username"),
        ({"security.protocol": "TLS"}, "TLS"),
        ({"security.protocol": "SSL", "ssl.keystore.location": "/k"}, "ssl.keystore.location"),
        ({"ssl.ca.location": "/certificates"}, "ssl.ca.location"),
        ({"sasl.username": "bob"}, "sasl.username"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}, "ssl.ca.location"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name_and_without_secrets(settings: dict[str, str], named: str) -> None:
    with pytest.raises(Misconfigured, match=named) as refused:
        security(settings)
    assert "secret" not in str(refused.value)
