"""Certificates of the server: checked before it listens, and read again when the files change."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from reward_server.config import ConfigError, ServerConfig
from reward_server.security.files import stamp


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificates lie."""

    cert: Path
    key: Path
    client_ca: Path | None

    @property
    def all(self) -> dict[str, Path]:
        """Key of the config -> file."""
        files = {"tls_cert_file": self.cert, "tls_key_file": self.key}
        return files | ({"tls_client_ca_file": self.client_ca} if self.client_ca else {})


class ServerTls:
    """The certificate in force; `refresh` takes a renewed one without a restart."""

    def __init__(self, files: TlsFiles) -> None:
        """Read and check the files; raises ConfigError."""
        self._files = files
        self._stamp = self._stamps()
        _check(files)
        self.context = _context(files)
        self._version = 0
        self._grpc_version = 0

    def refresh(self) -> bool:
        """Read the files again if one has changed; broken ones change nothing and are logged.

        Connections that exist keep their certificate. Returns whether a new one is in force. A
        changed CA of callers is taken by gRPC only in full; HTTP adds it to the ones before.
        """
        if (found := self._stamps()) == self._stamp:
            return False
        log = structlog.get_logger()
        try:
            _check(self._files)
            self.context.load_cert_chain(self._files.cert, self._files.key)
            if self._files.client_ca:
                self.context.load_verify_locations(self._files.client_ca)
        except (ConfigError, OSError) as error:
            # Perhaps only half of the files is there yet; the next check decides.
            log.error("certificate not reloaded", reason=str(error))
            return False
        self._stamp = found
        self._version += 1
        log.info("certificate reloaded", file=str(self._files.cert))
        return True

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For gRPC; asks for the certificate anew with every handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(),
            self._changed_grpc_configuration,
            require_client_authentication=self._files.client_ca is not None,
        )

    def _changed_grpc_configuration(self) -> Any:
        # Runs in gRPC's threads; None means: as before.
        if self._grpc_version == self._version:
            return None
        self._grpc_version = self._version
        try:
            return self._grpc_configuration()
        except OSError:
            return None

    def _grpc_configuration(self) -> Any:
        files = self._files
        pair = (files.key.read_bytes(), files.cert.read_bytes())
        roots = files.client_ca.read_bytes() if files.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def _stamps(self) -> list[object]:
        return [stamp(file) for file in self._files.all.values()]


def tls_from(server: ServerConfig) -> ServerTls | None:
    """The TLS that a config asks for, or None; raises ConfigError."""
    if not (server.tls_cert_file or server.tls_key_file or server.tls_client_ca_file):
        return None
    if not (server.tls_cert_file and server.tls_key_file):
        given = "tls_client_ca_file" if server.tls_client_ca_file else ""
        given = given if not (server.tls_cert_file or server.tls_key_file) else ""
        given = given or ("tls_cert_file" if server.tls_cert_file else "tls_key_file")
        raise ConfigError(f"server.{given} is set, TLS needs both tls_cert_file and tls_key_file")
    ca = Path(server.tls_client_ca_file) if server.tls_client_ca_file else None
    return ServerTls(TlsFiles(Path(server.tls_cert_file), Path(server.tls_key_file), ca))


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.cert, files.key)
    if files.client_ca:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check(files: TlsFiles) -> None:
    for key, file in files.all.items():
        _check_readable(key, file)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A password would be asked for on the terminal, where no one sits.
        context.load_cert_chain(files.cert, files.key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            what = f"{files.key} is not the key of {files.cert}"
        else:
            what = f"{files.cert} and {files.key} are not a PEM certificate and its plain PEM key"
        raise ConfigError(f"server.tls_cert_file: {what}") from error
    if files.client_ca:
        _check_ca(files.client_ca)
    _shake_hands(context, files.cert)


def _check_readable(key: str, file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise ConfigError(f"server.{key}: cannot read {file}: {error.strerror}") from error


def _check_ca(file: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise ConfigError(f"server.tls_client_ca_file: {file} holds no PEM certificate") from error
    authorities = context.get_ca_certs()
    if not authorities:
        raise ConfigError(
            f"server.tls_client_ca_file: {file} holds no certificate of an authority (CA: TRUE)"
        )
    ends_s = max(ssl.cert_time_to_seconds(str(ca["notAfter"])) for ca in authorities)
    if ends_s < time.time():
        raise ConfigError(f"server.tls_client_ca_file: {file} has expired")


def _shake_hands(server: ssl.SSLContext, cert: Path) -> None:
    """Do the handshake of a caller in memory: finds an expired certificate before callers do."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # The certificate vouches for itself here: whom callers trust is not known.
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(8):
            done = [_advance(end) for end in ends]
            if all(done):
                return
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"server.tls_cert_file: {cert} is refused by callers: {error.verify_message}"
        ) from error
    except ssl.SSLError as error:
        raise ConfigError(f"server.tls_cert_file: {cert} cannot be used: {error.reason}") from error


def _advance(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
