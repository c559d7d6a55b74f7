"""Where metrics need a door: at every address that is more than loopback."""

from __future__ import annotations

import ssl

from sapwood.daemon.http.door import ScrapeDoor
from sapwood.daemon.rpc.principals import Directory
from sapwood.daemon.settings.addresses import TcpAddress, is_loopback
from sapwood.daemon.settings.followed import Followed
from sapwood.daemon.settings.tls import TlsKeys


def scrape_door(
    address: TcpAddress, directory: Directory, tls: Followed[TlsKeys] | None
) -> ScrapeDoor | None:
    """None at loopback, which is open to whoever runs programs on the machine, and in the clear."""
    if is_loopback(address.host):
        return None

    def context() -> ssl.SSLContext:
        assert tls is not None, f"{address} without TLS is no configuration"
        return tls.value.context

    return ScrapeDoor(context, directory)
