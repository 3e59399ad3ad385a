"""Whether a local model server answers, found out before anything else starts."""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse

from engine.errors import MissingError

CONNECT_S = 2.0


def require_reachable(api_base: str) -> None:
    """MissingError when nothing listens at a local address; others may lie behind a proxy and are not tried."""
    address = urllib.parse.urlsplit(api_base)
    if address.hostname is None:
        hint = "give the full address, e.g. http://127.0.0.1:8000/v1"
        raise MissingError(f"llm.api_base: expected an address with a host, got {api_base!r}", hint=hint)
    if not _is_local(address.hostname):
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=CONNECT_S).close()
    except OSError as error:
        hint = "start the server, or correct llm.api_base"
        raise MissingError(f"llm.api_base: nothing answers at {api_base} ({error})", hint=hint) from error


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False
