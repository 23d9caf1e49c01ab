"""The error that every setting raises, and checks of names and hosts."""

from __future__ import annotations

import re
import socket
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from qlora_chat.errors import UserError


class SettingsError(UserError, ValueError):
    """A setting with an invalid value; the message says which, what arrived and what is allowed."""


def adapter_name(name: str) -> str:
    """The name, if a request can use it; SettingsError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise SettingsError(f"{name[:80]!a} is no name for an adapter: up to 64 letters, digits, dots, hyphens, underscores")
    return name


def http_url(url: str, message: str) -> SplitResult:
    """Parts of an http:// or https:// URL with a host. SettingsError with `message` for anything else."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # validated on access only
        (parts.hostname or "").encode("idna")
        if not url.isprintable() or " " in url:  # urlsplit drops line ends
            raise ValueError
    except ValueError:
        raise SettingsError(message) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(message)
    return parts


def check_header_secret(name: str, *secrets: str | None) -> None:
    """SettingsError that names the variable, and quotes none, unless each secret can be sent in a header."""
    for secret in filter(None, secrets):
        if not (secret.isascii() and secret.isprintable()):
            raise SettingsError(
                f"{name} has characters that no HTTP header can carry: use letters, digits and signs of ASCII, on one line"
            )


def check_authorities(name: str, file: Path | None) -> None:
    """SettingsError that names the variable unless the file is missing from the settings or holds a certificate."""
    if file is None:
        return
    if not file.is_file():
        raise SettingsError(f"{name} is {str(file)!r}, but there is no such file")
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(str(file))
    except (OSError, ValueError):  # SSLError is an OSError
        raise SettingsError(
            f"{name} is {str(file)!r}, which holds no certificate that can be read: it must be a PEM file of authorities"
        ) from None


def is_loopback(host: str) -> bool:
    """True for a host name or address that can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_this_machine(host: str) -> bool:
    """True for a host that can only be this machine, in the short forms that sockets read (127.1), too."""
    try:
        return is_loopback(host) or is_loopback(socket.inet_ntoa(socket.inet_aton(host)))
    except OSError:
        return False


def check_host(option: str, text: str) -> None:
    """SettingsError that names the option unless `text` is an address or a host name, without scheme, port and path."""
    try:
        ip_address(text.removeprefix("[").removesuffix("]"))
        return
    except ValueError:
        pass
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})", text) and not re.fullmatch(r"[0-9]+", text):
        return
    port = re.search(r":([0-9]+)/?$", text)
    hint = f"; the port is an option of its own: --port {port[1]}" if port else ""
    raise SettingsError(f"{option} is {text!r}, but must be an address or a host name alone, as 127.0.0.1 or localhost{hint}")


def check_host_name(option: str, text: str) -> None:
    """SettingsError that names the option unless `text` is a name by which a browser may address the server."""
    try:
        check_host(option, text)
    except SettingsError:
        raise SettingsError(
            f"{option} is {text!r}, but must be a host name or an address alone, as chat.example.org: no scheme, no port, no *"
        ) from None


def network(option: str, text: str) -> None:
    """SettingsError that names the option unless `text` is an address or a network."""
    try:
        ip_network(text)
    except ValueError:
        raise SettingsError(f"{option} is {text!r}, but must be an address (10.0.0.7) or a network (10.0.0.0/8)") from None


def check_origin(option: str, text: str) -> None:
    """SettingsError that names the option unless `text` is an origin exactly as browsers send it."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", text)
    if not found or (found[1], found[3]) in (("http", ":80"), ("https", ":443")):
        raise SettingsError(
            f"{option} is {text!r}, but must be one origin as browsers send it, such as https://app.example or "
            "http://localhost:3000: in small letters, without a path, and without the scheme's own port"
        )


def one_of(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    """SettingsError that names the option unless `value` is allowed."""
    if value not in allowed:
        raise SettingsError(f"--{name} is {value!r}, but must be one of {', '.join(filter(None, allowed))}")
