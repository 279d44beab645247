"""Certificates and tokens, checked before a server or a client uses them.

Both ends read them from files; gRPC itself would say of a faulty one only that it has no security
handshaker. Does not know what they are used for.
"""

from __future__ import annotations

import logging
import re
import ssl
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from iblip.export.errors import OptionError
from iblip.export.messages import shown

logger = logging.getLogger(__name__)

TOKEN_LENGTHS = (16, 4096)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]*")


class _EncryptedError(Exception):
    """A key is encrypted: it needs a password."""


def check_key_pair(certificate: Path, key: Path) -> None:
    """Checks that a certificate and its private key can be used together.

    Args:
        certificate: PEM; the certificate itself first, then those that signed it.
        key: PEM, not encrypted.

    Raises:
        OptionError: a file cannot be read, is of another kind, or the two do not belong together.
    """
    _read(certificate, "certificate")
    _read(key, "private key")
    warn_if_public(key, "private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, _refuse_password)
    except _EncryptedError:
        raise OptionError(
            f"the private key {key} is encrypted, which gRPC cannot read. "
            "`openssl pkey -in KEY -out PLAIN` decrypts it."
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise OptionError(
                f"the private key {key} is not that of the certificate {certificate}"
            ) from error
        raise OptionError(
            f"{certificate} and {key} cannot be used: {error.reason or error}. "
            "Expected a certificate and its private key, both PEM."
        ) from error


def names_of_certificate(certificate: Path, key: Path) -> tuple[str, ...]:
    """The names and addresses that a server's certificate is for, as it lists them.

    Python's `ssl` reads them from a peer alone: so a server of the certificate shakes hands with a
    client that trusts it, in memory.

    Args:
        certificate, key: as `check_key_pair` takes them.

    Raises:
        OptionError: no client would trust it, such as one that has expired.
    """
    server, client = (
        ssl.SSLContext(side) for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    server.load_cert_chain(certificate, key)
    client.load_verify_locations(certificate)
    client.check_hostname = False  # the name is what is looked for
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(one, other), server.wrap_bio(other, one, server_side=True)
    try:
        for end in (*ends, *ends):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise OptionError(
            f"the certificate {certificate} cannot be trusted: {error.verify_message}"
        ) from error
    peer: Any = ends[0].getpeercert() or {}
    return tuple(
        name for kind, name in peer.get("subjectAltName", ()) if kind in ("DNS", "IP Address")
    )


def check_authorities(path: Path) -> None:
    """Checks a file of certificate authorities, PEM.

    Raises:
        OptionError: it cannot be read, or holds no certificate.
    """
    _read(path, "file of certificate authorities")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise OptionError(
            f"{path} holds no certificate authority ({error.reason or error}). "
            "Expected certificates, PEM."
        ) from error


def check_token(token: object) -> None:
    """Checks that a token can travel in a header and in a flag.

    Raises:
        OptionError: it is too short to be a secret, too long, or has other characters than base64
            and hexadecimal numbers have. Never repeats it.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise OptionError(f"the token has a character other than A-Z a-z 0-9 . _ ~ + / = -. {MAKE}")
    least, most = TOKEN_LENGTHS
    if not least <= len(token) <= most:
        raise OptionError(
            f"the token has {len(token)} characters; expected {least} to {most}. {MAKE}"
        )


MAKE = "`openssl rand -hex 32` makes one."


def read_token(path: Path) -> str:
    """The token in a file; blanks and line breaks around it do not count.

    Raises:
        OptionError: the file cannot be read, or holds no token.
    """
    token = _read(path, "token file").decode(errors="replace").strip()
    check_token(token)
    warn_if_public(path, "token file")
    return token


def warn_if_public(path: Path, what: str) -> None:
    """Warns where any user of this machine may read a secret."""
    if path.stat().st_mode & stat.S_IROTH:
        logger.warning(
            "the %s %s may be read by every user of this machine; `chmod 600` ends that", what, path
        )


def _read(path: Path, what: str) -> bytes:
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "no such file")
        return path.read_bytes()
    except OSError as error:
        message = f"the {what} {shown(str(path))} cannot be read: {error.strerror}"
        raise OptionError(message) from error


def _refuse_password() -> str:
    raise _EncryptedError
