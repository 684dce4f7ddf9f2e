"""Which hosts and addresses a clip may be read from over the network.

A URL comes from whoever sends the request, so a server that reads it must not be led to machines
that only it can reach: its own, those of its network, or the metadata service of its cloud.
"""

import ipaddress
import socket
import urllib.parse
from collections.abc import Sequence

from stepaudio_jax.errors import AudioError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_HTTPS_PORT = 443
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_IPV4_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_SITE_LOCAL = ipaddress.IPv6Network("fec0::/10")
_MAX_URL_CHARACTERS = 4096


def check_url(url: str, domains: Sequence[str]) -> tuple[str, str]:
    """Checks a URL against the hosts that are allowed.

    Args:
        url: as the client has sent it.
        domains: hosts that may be read from, with those below them.

    Returns:
        The host, and path and query as a request names them.

    Raises:
        AudioError: it is no https URL of an allowed host on the usual port, or names a user.
    """
    name = short_name(url)
    if len(url) > _MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
        raise AudioError(name, "is no URL of visible ASCII characters; write it again")
    if "\\" in url:
        raise AudioError(name, "has a backslash, which no URL has; write it again")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise AudioError(name, f"is no URL ({error}); write it again") from None
    if parts.scheme.lower() != "https":
        raise AudioError(name, "is not read: a clip's URL must begin with https://")
    if "@" in parts.netloc:
        raise AudioError(name, "names a user; leave that out")
    if port not in (None, _HTTPS_PORT):
        raise AudioError(name, f"names port {port}; only {_HTTPS_PORT} is read from")
    if not any(_is_within(host.lower(), domain.lower()) for domain in domains):
        allowed = ", ".join(domains) or "none; start it with --audio-domain"
        raise AudioError(
            name, f"is of a host that this server does not read from (allowed: {allowed})"
        )
    path = parts.path or "/"
    return host.lower(), f"{path}?{parts.query}" if parts.query else path


def resolve(host: str, name: str) -> list[IPAddress]:
    """Returns a host's addresses, all of them public.

    Args:
        host: its name.
        name: of the clip, the start of an error.

    Raises:
        AudioError: the host is not known, or one of its addresses is not public.
    """
    try:
        answers = socket.getaddrinfo(host, _HTTPS_PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AudioError(name, f"cannot be read: its host is not known ({error})") from None
    addresses = [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
    for address in addresses:
        if not is_public(address):
            raise AudioError(
                name, "is not read: its host has an address that is not of the public internet"
            )
    return list(dict.fromkeys(addresses))


def is_public(address: IPAddress) -> bool:
    """Returns whether an address is one of the public internet, also behind its disguises.

    An IPv6 address may hold an IPv4 one (mapped, translated, NAT64, 6to4, Teredo), to which it then
    leads.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded_ipv4(address)
        if inner is not None:
            return is_public(inner)
        if address in _SITE_LOCAL or address in _NAT64_LOCAL:
            return False
    return bool(
        address.is_global
        and not address.is_private
        and not address.is_loopback
        and not address.is_link_local
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
    )


def short_name(url: str) -> str:
    """Returns a URL as an error names it: its beginning, without what may be a password."""
    scheme, separator, rest = url.partition("://")
    host = rest.partition("/")[0].rpartition("@")[2]
    shown = f"{scheme}{separator}{host}" if separator else url.partition(",")[0]
    return f"{shown[:100]}.."


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    is_compatible = address in _IPV4_COMPATIBLE and int(address) > 1
    if address in _NAT64 or address in _IPV4_TRANSLATED or is_compatible:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _is_within(host: str, domain: str) -> bool:
    return host == domain or host.endswith(f".{domain}")
