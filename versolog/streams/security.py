"""How the worker's reader proves itself to the brokers: librdkafka's settings, for aiokafka."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from versolog.schemas.errors import Misconfigured

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI")
SECURITY_PREFIXES = ("security.", "sasl.", "ssl.", "enable.ssl.", "enable.sasl.")


def security(settings: Mapping[str, str]) -> dict[str, Any]:
    """librdkafka's security settings as keyword arguments of aiokafka. Settings of other kinds are left out.

    Raises `Misconfigured` for one that can't be followed, rather than connect in another way than was asked for.
    """
    left = {name: str(value) for name, value in settings.items() if name.startswith(SECURITY_PREFIXES)}
    protocol = left.pop("security.protocol", "PLAINTEXT").upper()
    if protocol not in PROTOCOLS:
        raise Misconfigured(f"security.protocol is {protocol}, and should be one of {', '.join(PROTOCOLS)}")
    arguments: dict[str, Any] = {"security_protocol": protocol}
    if protocol.startswith("SASL"):
        arguments |= _sasl(left)
    if protocol.endswith("SSL"):
        arguments["ssl_context"] = _tls(left)
    if left:
        raise Misconfigured(f"with security.protocol={protocol} the worker can't follow {', '.join(sorted(left))}")
    return arguments


def _sasl(left: dict[str, str]) -> dict[str, Any]:
    mechanism = left.pop("sasl.mechanism", None) or left.pop("sasl.mechanisms", "GSSAPI")
    match mechanism.upper():
        case "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512":
            missing = [name for name in ("sasl.username", "sasl.password") if name not in left]
            if missing:
                raise Misconfigured(f"sasl.mechanism={mechanism} needs {' and '.join(missing)}")
            return {
                "sasl_mechanism": mechanism.upper(),
                "sasl_plain_username": left.pop("sasl.username"),
                "sasl_plain_password": left.pop("sasl.password"),
            }
        case "GSSAPI":
            service = left.pop("sasl.kerberos.service.name", "kafka")
            return {"sasl_mechanism": "GSSAPI", "sasl_kerberos_service_name": service}
        case _:
            raise Misconfigured(f"sasl.mechanism is {mechanism}, and should be one of {', '.join(MECHANISMS)}")


def _tls(left: dict[str, str]) -> ssl.SSLContext:
    authorities, pem = left.pop("ssl.ca.location", None), left.pop("ssl.ca.pem", None)
    certificate, key = left.pop("ssl.certificate.location", None), left.pop("ssl.key.location", None)
    password = left.pop("ssl.key.password", None)
    verified = left.pop("enable.ssl.certificate.verification", "true").lower() != "false"
    named = left.pop("ssl.endpoint.identification.algorithm", "https").lower() != "none"
    try:
        context = ssl.create_default_context(cafile=authorities, cadata=pem)
        context.check_hostname = named and verified
        context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
        if certificate is not None:
            context.load_cert_chain(certificate, key, password)
    except OSError as error:  # ssl.SSLError is one
        files = f"ssl.ca.location={authorities} ssl.certificate.location={certificate} ssl.key.location={key}"
        raise Misconfigured(f"TLS can't be set up from {files}: {error}") from error
    return context
