"""Addresses, limits and credentials of the page's server and the receiver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlora_chat.settings.checks import (
    SettingsError,
    check_header_secret,
    check_host,
    check_host_name,
    check_origin,
    is_loopback,
    is_this_machine,
    network,
)

DEFAULT_PORT = 7860
SHORTEST_PASSWORD = 12
"""Characters of a password or token of a server that other machines can reach."""


@dataclass(frozen=True)
class ServeSettings:
    """The page's server."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: 7860 or the next free port."""
    token: str | None = None
    """Password that every request must carry; required to listen beyond loopback."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, besides loopback and host, by which browsers may reach the page."""
    api_tokens: tuple[str, ...] = ()
    """Tokens for the API under /v1 and nothing else."""
    queue: int = 128
    """Requests that may wait; one more is refused with a time to retry."""
    most_tokens: int | None = None
    """Limit of max_tokens in an API request; None: the window."""
    request_seconds: float = 600.0
    """Time limit of one API request, its wait included."""
    log_requests: bool = False
    """Write a line of JSON per request to standard error: ids, sizes and times, never text."""
    operator_token: str | None = None
    """Bearer token that adapters are loaded and metrics read with, and that opens everything else, too. None: nobody may where
    there is a password, everybody where there is none."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded headers count."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of browser apps that may use the API."""
    page_operator: bool = False
    """Whoever opens the page may act as the operator on it: switch the model, and train."""

    def __post_init__(self) -> None:
        _check_addresses(self)
        if self.api_tokens and not self.token:
            raise SettingsError("QLORA_CHAT_API_TOKENS opens the API only, so set QLORA_CHAT_TOKEN for the page, too")
        if not 0 <= self.queue <= 10_000:
            raise SettingsError(f"--queue is {self.queue}, but must be a whole number from 0 to 10000")
        if self.most_tokens is not None and self.most_tokens < 1:
            raise SettingsError(f"--max-tokens is {self.most_tokens}, but must be at least 1")
        if not 1 <= self.request_seconds <= 86_400:
            raise SettingsError(f"--time-limit is {self.request_seconds:g}, but must be from 1 to 86400 seconds")
        if self.operator_token and self.operator_token in (self.token, *self.api_tokens):
            raise SettingsError("QLORA_CHAT_OPERATOR_TOKEN is also a password of others: the operator's must be its own")
        for origin in self.allowed_origins:
            check_origin("--allow-origin", origin)
        if not self.token:
            _check_unprotected(self, "a password is needed: set QLORA_CHAT_TOKEN")
        _check_secrets(self.host, "QLORA_CHAT_TOKEN", self.token)
        _check_secrets(self.host, "QLORA_CHAT_OPERATOR_TOKEN", self.operator_token)
        _check_secrets(self.host, "each of QLORA_CHAT_API_TOKENS", *self.api_tokens)


def is_shared(settings: ServeSettings) -> bool:
    """True if several people use the page: other machines reach it, themselves or through a proxy."""
    return not is_loopback(settings.host) or bool(settings.trusted_proxies)


def operates_page(settings: ServeSettings) -> bool:
    """True if people on the page may switch the model and train: where that is allowed, and where everybody who can connect is
    the operator, since there is no password."""
    return settings.page_operator or not (settings.token or settings.operator_token)


@dataclass(frozen=True)
class ReceiverSettings:
    """The receiver's server, `logs serve`."""

    host: str = "127.0.0.1"
    port: int = 9000
    token: str | None = None
    """Bearer token of senders without a name, and password of the page; without it or `senders`, loopback only."""
    secret: str | None = None
    """Every record must be signed with it; None accepts unsigned ones."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, besides loopback and host, by which it may be reached."""
    certificate: Path | None = None
    """PEM file of the chain; None serves plain http."""
    key: Path | None = None
    """PEM file of the private key; None where the certificate's file contains it."""
    senders: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Bearer token of each named sender, which only writes; records of one name are apart from those of the others."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded headers count."""

    def __post_init__(self) -> None:
        _check_addresses(self)
        if not (self.token or self.senders):
            _check_unprotected(self, "senders need a token: set LOGGING_TOKEN here and there")
        _check_secrets(self.host, "LOGGING_TOKEN", self.token)
        _check_secrets(self.host, "each of LOGGING_TOKENS", *self.senders.values())
        if self.token in self.senders.values():
            raise SettingsError("LOGGING_TOKEN is also the token of a sender in LOGGING_TOKENS, but it must be another one")
        if self.key and not self.certificate:
            raise SettingsError("--tls-key needs --tls-cert, the certificate that belongs to it")
        for option, file in (("--tls-cert", self.certificate), ("--tls-key", self.key)):
            if file and not file.is_file():
                raise SettingsError(f"{option} is {file}, but there is no such file")


def _check_addresses(settings: ServeSettings | ReceiverSettings) -> None:
    """SettingsError for a host, a port or a proxy that is none."""
    check_host("--host", settings.host)
    for name in settings.allowed_hosts:
        check_host_name("--allow-host", name)
    if settings.port is not None and not 1 <= settings.port <= 65_535:
        raise SettingsError(f"--port is {settings.port}, but must be from 1 to 65535")
    for proxy in settings.trusted_proxies:
        network("--trusted-proxy", proxy)


def _check_unprotected(settings: ServeSettings | ReceiverSettings, needed: str) -> None:
    """SettingsError for a server without a password that other machines reach; `needed` says what to set."""
    if not is_loopback(settings.host):
        raise SettingsError(
            f"--host {settings.host} can be reached by other machines, so {needed}, or leave --host at 127.0.0.1"
        )
    if settings.trusted_proxies:
        raise SettingsError(f"--trusted-proxy says that other machines reach this server through a proxy, so {needed}")


def _check_secrets(host: str, name: str, *secrets: str | None) -> None:
    """SettingsError for a secret that no header can carry, and for a short one of a server that other machines reach."""
    check_header_secret(name, *secrets)
    shortest = min((len(each) for each in secrets if each), default=SHORTEST_PASSWORD)
    if shortest < SHORTEST_PASSWORD and not is_this_machine(host):
        raise SettingsError(
            f"--host {host} can be reached by other machines, so {name} needs {SHORTEST_PASSWORD} characters or more, "
            f"but has {shortest}: `openssl rand -hex 24` draws a good one"
        )
