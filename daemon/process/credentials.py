"""What proves who a daemon is and who calls it: certificates and tokens, as the files say now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import grpc

from sapwood.daemon.settings.config import Config
from sapwood.daemon.settings.followed import Followed
from sapwood.daemon.settings.tls import TlsKeys, read_tls
from sapwood.daemon.settings.tokens import TokenTable, read_tokens


@dataclass(frozen=True, slots=True)
class Credentials:
    """None for what is not in use."""

    tls: Followed[TlsKeys] | None
    tokens: Followed[TokenTable] | None

    @classmethod
    def of(cls, config: Config) -> Credentials:
        """Reads all files. Raises StartError."""
        tls, tokens = config.tls, config.tokens
        return cls(
            None if tls is None else Followed(tls.paths, partial(read_tls, tls)),
            None if tokens is None else Followed((tokens,), partial(read_tokens, tokens)),
        )

    @property
    def any(self) -> bool:
        """Whether there is anything to read again."""
        return self.tls is not None or self.tokens is not None

    @property
    def certifies_clients(self) -> bool:
        """Whether every TLS connection comes with a client's certificate."""
        return self.tls is not None and self.tls.value.client_ca is not None

    def follow(self) -> None:
        """Read what changed, in any thread, one at a time."""
        for followed in (self.tls, self.tokens):
            if followed is not None:
                followed.follow()


def server_credentials(tls: Followed[TlsKeys]) -> grpc.ServerCredentials:
    """For one server: each new connection gets the certificates that are there then."""
    given = tls.value

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, on a thread of its own, before each handshake. None: as before."""
        nonlocal given
        if tls.value is given:
            return None
        given = tls.value
        return _configuration(given)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        renewed,  # type: ignore[arg-type]  # the types do not know that None means no change
        require_client_authentication=given.client_ca is not None,
    )


def _configuration(keys: TlsKeys) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(keys.key, keys.chain)], root_certificates=keys.client_ca
    )
