"""Every setting, checked where it is made.

Scope: frozen dataclasses that refuse bad values with the field, the value and the range. The process environment is
read here and nowhere else. Knows nothing of what the settings are used for.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

Precision = Literal["auto", "bf16", "nf4"]
Device = Literal["auto", "cuda", "cpu"]

DEFAULT_PORT = 7860


class SettingsError(ValueError):
    """A setting that cannot be used; the message says which, what arrived and what is allowed."""

    for_people = True


@dataclass(frozen=True)
class Range:
    """Allowed values of a sampling control, with its slider step and default."""

    minimum: float
    maximum: float
    step: float
    default: float
    integer: bool = False


SAMPLING_RANGES: Mapping[str, Range] = {
    "temperature": Range(0.0, 2.0, 0.05, 0.7),
    "top_p": Range(0.0, 1.0, 0.01, 0.9),
    "top_k": Range(0, 200, 1, 0, integer=True),
    "repetition_penalty": Range(1.0, 2.0, 0.05, 1.0),
    "max_new_tokens": Range(1, 131_072, 1, 1536, integer=True),
    "seed": Range(0, 2**63 - 1, 1, 0, integer=True),
    "logprobs": Range(0, 20, 1, 0, integer=True),
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Defaults are the original demo's; ValueError names what is wrong."""

    temperature: float = 0.7
    """0 means greedy."""
    top_p: float = 0.9
    """Smallest set of tokens whose probability reaches this; 1 is off, 0 keeps only the best."""
    top_k: int = 0
    """Keep the k best tokens; 0 is off."""
    repetition_penalty: float = 1.0
    """Divides (or multiplies, below zero) logits of tokens already in prompt or answer (CTRL, Keskar 2019); 1 is off."""
    max_new_tokens: int = 1536
    seed: int | None = None
    """Same seed, same prompt, same device: same answer. None draws one."""
    logprobs: int | None = None
    """Report each token's log probability, and those of so many likeliest; None reports nothing."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("seed", "logprobs") and value is None:
                continue
            object.__setattr__(self, each.name, _checked(each.name, value))

    def changed(self, /, **values: Any) -> Sampling:
        """A copy with some fields replaced; SettingsError for unknown names or bad values."""
        known = {each.name: getattr(self, each.name) for each in fields(self)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise SettingsError(f"unknown sampling setting {unknown[0]!r}; known: {', '.join(known)}")
        return Sampling(**{**known, **values})


def _checked(name: str, value: Any) -> float | int:
    """The value as float or int inside its range. JSON and Gradio blur the two, so 40.0 is taken as 40."""
    allowed = SAMPLING_RANGES[name]
    kind = "a whole number" if allowed.integer else "a number"
    span = f"{kind} from {allowed.minimum:g} to {allowed.maximum:g}" if name != "seed" else "a whole number from 0 to 2^63 - 1"
    problem = SettingsError(f"{name} is {value!r}, but must be {span}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise problem
    if isinstance(value, float) and (not math.isfinite(value) or (allowed.integer and not value.is_integer())):
        raise problem
    if not allowed.minimum <= value <= allowed.maximum:
        raise problem
    return int(value) if allowed.integer else float(value)


@dataclass(frozen=True)
class ModelSettings:
    """Which model to talk to and how to hold it."""

    model: str = "auto"
    """auto, guanaco-7b or demo; ignored when base is given."""
    base: str | None = None
    """Hub id or folder of a LLaMA-family base."""
    adapter: str | None = None
    """Hub id or folder of a PEFT LoRA adapter; None talks to the base alone."""
    precision: Precision = "auto"
    device: Device = "auto"
    prompt_format: str | None = None
    """Name of a prompt format; None takes what the adapter declares, else guanaco."""
    slots: int | None = None
    """Chats that share one forward pass; None fits them to memory."""
    adapters: tuple[tuple[str, str], ...] = ()
    """(name, Hub id or folder) of LoRA adapters to keep beside the base, unmerged, for requests to choose from."""

    def __post_init__(self) -> None:
        _one_of("model", self.model, ("auto", "guanaco-7b", "demo"))
        _one_of("precision", self.precision, ("auto", "bf16", "nf4"))
        _one_of("device", self.device, ("auto", "cuda", "cpu"))
        if self.adapter and not self.base:
            raise SettingsError(f"--adapter {self.adapter} needs --base, the model it was tuned on")
        if self.adapters and (self.adapter or not self.base):
            raise SettingsError("named adapters need --base: --base BASE --adapter NAME=PATH --adapter NAME=PATH")
        for name, _ in self.adapters:
            adapter_name(name)
        if len({name for name, _ in self.adapters}) < len(self.adapters):
            raise SettingsError("two adapters have the same name")
        if self.slots is not None and not 1 <= self.slots <= 256:
            raise SettingsError(f"slots is {self.slots!r}, but must be a whole number from 1 to 256")


@dataclass(frozen=True)
class EngineSettings:
    """Where answers are computed: in this process, or on servers that speak OpenAI's API."""

    urls: tuple[str, ...] = ()
    """Each server's address up to /v1; () computes in this process."""
    model: str | None = None
    """The name that the servers know the model by; None takes the only one they list."""
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token."""
    ca_file: Path | None = None
    """Certificates that sign the servers' own; None trusts the usual authorities."""

    def __post_init__(self) -> None:
        if len(set(self.urls)) < len(self.urls):
            raise SettingsError("--engine names a server twice")
        if self.model and not self.urls:
            raise SettingsError(
                f"--engine-model {self.model} names a model of other servers: give them with --engine http://..."
            )

    @property
    def unencrypted(self) -> tuple[str, ...]:
        """Servers that conversations reach in the clear, over a network."""
        return tuple(url for url in self.urls if url.startswith("http:") and not is_loopback(urlsplit(url).hostname or ""))


def _server_url(text: str) -> str:
    """An address without a slash at its end, "/v1" where it has no path. SettingsError for what is not one."""
    problem = SettingsError(f"--engine is {text!r}, but must be local, or http://HOST:PORT/v1 (several with commas between)")
    try:
        parts = urlsplit(text)
        _ = parts.port  # checked only when it is read
    except ValueError:
        raise problem from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise problem
    if parts.username or parts.password:
        raise SettingsError("--engine holds a password, which every user of this machine can read: set QLORA_CHAT_ENGINE_KEY")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


@dataclass(frozen=True)
class ServeSettings:
    """Where the page listens."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None takes 7860 or the next free port."""
    token: str | None = None
    """Password that every request must carry; required to listen beyond loopback."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, besides loopback and host, that a browser may use to reach the page."""
    api_tokens: tuple[str, ...] = ()
    """Tokens that open the API under /v1 and nothing else."""
    queue: int = 128
    """Requests that may wait for their turn; one more is told to come back later."""
    most_tokens: int | None = None
    """Most tokens that one API request may ask for; None is what the window allows."""
    request_seconds: float = 600.0
    """How long one API request may take, its wait included."""
    log_requests: bool = False
    """Write a line of JSON a request to standard error: ids, sizes and times, never text."""

    def __post_init__(self) -> None:
        if self.api_tokens and not self.token:
            raise SettingsError("QLORA_CHAT_API_TOKENS opens the API only, so set QLORA_CHAT_TOKEN for the page, too")
        if not 0 <= self.queue <= 10_000:
            raise SettingsError(f"--queue is {self.queue}, but must be a whole number from 0 to 10000")
        if self.most_tokens is not None and self.most_tokens < 1:
            raise SettingsError(f"--max-tokens is {self.most_tokens}, but must be at least 1")
        if not 1 <= self.request_seconds <= 86_400:
            raise SettingsError(f"--time-limit is {self.request_seconds:g}, but must be from 1 to 86400 seconds")
        if self.port is not None and not 1 <= self.port <= 65_535:
            raise SettingsError(f"--port is {self.port}, but must be from 1 to 65535")
        if not is_loopback(self.host) and not self.token:
            raise SettingsError(
                f"--host {self.host} can be reached by other machines, so a password is needed: "
                "set QLORA_CHAT_TOKEN, or leave --host at 127.0.0.1"
            )


@dataclass(frozen=True)
class HistorySettings:
    """Where conversations are kept; url None keeps them in memory."""

    url: str | None = None
    """sqlite:///FILE, postgresql://USER@HOST/DATABASE, jsonl:FOLDER, or the scheme of an installed store."""
    password: str | None = field(default=None, repr=False)
    """Of the database server; None leaves it to PGPASSWORD and ~/.pgpass."""
    key: str | None = field(default=None, repr=False)
    """32 bytes in base64: what is written is encrypted with them."""
    keep_days: float | None = None
    """Conversations untouched for longer are erased; None keeps them."""

    def __post_init__(self) -> None:
        if self.url is not None and ":" not in self.url:
            raise SettingsError(
                f"--history is {self.url!r}, but must be like sqlite:///chats.db, postgresql://USER@HOST/DATABASE "
                "or jsonl:FOLDER"
            )
        if self.keep_days is not None and not 0 < self.keep_days < math.inf:
            raise SettingsError(f"QLORA_CHAT_HISTORY_DAYS is {self.keep_days!r}, but must be a number of days above 0")


@dataclass(frozen=True)
class LogSettings:
    """Where finished turns are posted; url None posts nothing."""

    url: str | None = None
    token: str | None = field(default=None, repr=False)
    """Sent as a bearer token."""
    secret: str | None = field(default=None, repr=False)
    """Signs id, timestamp and body with HMAC-SHA256."""
    version: int = 1
    """Of the payload: 1 is the original demo's, 2 adds to it."""
    redact: str | None = None
    """"standard", or MODULE:FUNCTION that takes a record and returns what may be sent."""
    certificates: Path | None = None
    """A file of authorities to trust instead of the usual ones."""
    outbox: Path | None = None
    """File of the queue where there is no database history; None takes the user's state folder."""
    cap_bytes: int = 50_000_000
    """Most that the queue may take on disk; what does not fit is dropped and counted."""

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise SettingsError(f"LOGGING_VERSION is {self.version!r}, but must be 1 or 2")
        if self.redact not in (None, "standard") and ":" not in str(self.redact):
            raise SettingsError(f"LOGGING_REDACT is {self.redact!r}, but must be standard or MODULE:FUNCTION")
        if self.certificates is not None and not self.certificates.is_file():
            raise SettingsError(f"LOGGING_CA names {self.certificates}, which is not a file")
        if not 8_000_000 <= self.cap_bytes <= 10**12:
            raise SettingsError("LOGGING_OUTBOX_MB must be a number from 8 to 1,000,000")
        if self.url is None:
            return
        problem = SettingsError("LOGGING_URL must look like https://host/path")
        try:
            parts = urlsplit(self.url)
            _ = parts.port  # checked only when it is read
        except ValueError:
            raise problem from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise problem
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise SettingsError(
                f"LOGGING_URL would send conversations to {parts.hostname} unencrypted: use https (http is for loopback only)"
            )


@dataclass(frozen=True)
class ReceiverSettings:
    """Where `logs serve` listens, and what senders must show."""

    host: str = "127.0.0.1"
    port: int = 9000
    token: str | None = None
    """Bearer token of every sender, and password of the page; required to listen beyond loopback."""
    secret: str | None = None
    """Every record must be signed with it; None takes unsigned ones."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, besides loopback and host, by which it may be reached."""
    certificate: Path | None = None
    """PEM file of the chain; None serves plain http."""
    key: Path | None = None
    """PEM file of the private key; None where the certificate's file holds it."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65_535:
            raise SettingsError(f"--port is {self.port}, but must be from 1 to 65535")
        if not is_loopback(self.host) and not self.token:
            raise SettingsError(
                f"--host {self.host} can be reached by other machines, so senders must show a token: "
                "set LOGGING_TOKEN here and there, or leave --host at 127.0.0.1"
            )
        if self.key and not self.certificate:
            raise SettingsError("--tls-key needs --tls-cert, the certificate that belongs to it")
        for option, file in (("--tls-cert", self.certificate), ("--tls-key", self.key)):
            if file and not file.is_file():
                raise SettingsError(f"{option} is {file}, but there is no such file")


def adapter_name(name: str) -> str:
    """The name, if it is one that a request can give; SettingsError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise SettingsError(f"{name[:80]!a} is no name for an adapter: up to 64 letters, digits, dots, hyphens, underscores")
    return name


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"--{name} is {value!r}, but must be one of {', '.join(allowed)}")


# --- the environment -------------------------------------------------------------------------------------------------


def log_settings(environ: Mapping[str, str] = os.environ) -> LogSettings:
    """LogSettings from LOGGING_URL (unset or empty: no log), _TOKEN, _SECRET, _VERSION, _REDACT, _CA, _OUTBOX, _OUTBOX_MB."""
    get = environ.get
    authorities, outbox = get("LOGGING_CA"), get("LOGGING_OUTBOX")
    return LogSettings(
        get("LOGGING_URL") or None,
        get("LOGGING_TOKEN") or None,
        get("LOGGING_SECRET") or None,
        int(_number("LOGGING_VERSION", get("LOGGING_VERSION") or "1")),
        get("LOGGING_REDACT") or None,
        Path(authorities).expanduser() if authorities else None,
        Path(outbox).expanduser() if outbox else None,
        int(_number("LOGGING_OUTBOX_MB", get("LOGGING_OUTBOX_MB") or "50") * 1e6),
    )


def history_settings(url: str | None, environ: Mapping[str, str] = os.environ) -> HistorySettings:
    """HistorySettings from --history, else QLORA_CHAT_HISTORY; password, key and days from the environment only."""
    days = environ.get("QLORA_CHAT_HISTORY_DAYS")
    return HistorySettings(
        url or environ.get("QLORA_CHAT_HISTORY") or None,
        environ.get("QLORA_CHAT_HISTORY_PASSWORD") or None,
        environ.get("QLORA_CHAT_HISTORY_KEY") or None,
        _number("QLORA_CHAT_HISTORY_DAYS", days) if days else None,
    )


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SettingsError(f"{name} is {text!r}, but must be a number")
    return number


def outbox_file(settings: LogSettings, environ: Mapping[str, str] = os.environ) -> Path:
    """The queue's own file: LOGGING_OUTBOX, else in the user's state folder (XDG)."""
    state = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return settings.outbox or state / "qlora-chat" / "outbox.db"


def receiver_settings(
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    certificate: Path | None,
    key: Path | None,
    environ: Mapping[str, str] = os.environ,
) -> ReceiverSettings:
    """ReceiverSettings with the token and the secret that senders have: LOGGING_TOKEN and LOGGING_SECRET."""
    token, secret = environ.get("LOGGING_TOKEN") or None, environ.get("LOGGING_SECRET") or None
    return ReceiverSettings(host, port, token, secret, tuple(allowed_hosts), certificate, key)


def engine_settings(engine: str, model: str | None = None, environ: Mapping[str, str] = os.environ) -> EngineSettings:
    """EngineSettings from "local", or addresses with commas between; key and authority from QLORA_CHAT_ENGINE_KEY and _CA."""
    if engine == "local":
        return EngineSettings((), model)
    urls = tuple(_server_url(each.strip()) for each in engine.split(","))
    authority = environ.get("QLORA_CHAT_ENGINE_CA")
    if authority and not Path(authority).is_file():
        raise SettingsError(f"QLORA_CHAT_ENGINE_CA is {authority!r}, but there is no such file")
    return EngineSettings(urls, model, environ.get("QLORA_CHAT_ENGINE_KEY") or None, Path(authority) if authority else None)


def page_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """The page's password from QLORA_CHAT_TOKEN; a password never comes from argv, where every user can read it."""
    return environ.get("QLORA_CHAT_TOKEN") or None


def api_tokens(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Tokens for API clients from QLORA_CHAT_API_TOKENS, separated by commas or white space."""
    return tuple(environ.get("QLORA_CHAT_API_TOKENS", "").replace(",", " ").split())


def traces_endpoint(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where OpenTelemetry's own variables send traces to; None where they name no place, or switch it off."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    return environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where merged and quantised weights are kept: QLORA_CHAT_CACHE, else the user's cache folder (XDG)."""
    if own := environ.get("QLORA_CHAT_CACHE"):
        return Path(own).expanduser()
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora-chat"


def hub_cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the Hub's client keeps downloads: HF_HUB_CACHE, else HF_HOME/hub, else the user's cache folder (XDG)."""
    if own := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface" / "hub"


def hub_is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether HF_HUB_OFFLINE forbids asking the Hub."""
    return environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_token_is_set(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether HF_TOKEN holds a token for the Hub, or its client keeps one; the token itself is the client's business."""
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    return bool(environ.get("HF_TOKEN")) or (home / "token").is_file()


def quiet_libraries(environ: Any = os.environ) -> None:
    """Turn off what Gradio and the Hub client would send or print on their own; call before importing them."""
    environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # else it builds a table of all past events after each one
    environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    environ.setdefault(
        "MPLCONFIGDIR", str(cache_folder(environ) / "matplotlib")
    )  # Gradio imports it, and it keeps a list of fonts
