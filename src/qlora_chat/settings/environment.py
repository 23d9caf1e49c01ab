"""The process environment, read here and nowhere else."""

from __future__ import annotations

import math
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qlora_chat.settings.checks import SettingsError
from qlora_chat.settings.model import CPU_ISAS, CpuIsa, EngineSettings, server_url
from qlora_chat.settings.persistence import HistorySettings, LogSettings
from qlora_chat.settings.server import ReceiverSettings

_GRADIO_FOLDER = f"qlora-chat-{secrets.token_hex(16)}"


def log_settings(environ: Mapping[str, str] = os.environ) -> LogSettings:
    """LogSettings from LOGGING_URL (unset or empty: no log), _TOKEN, _SECRET, _VERSION, _REDACT, _CA, _OUTBOX, _OUTBOX_MB."""
    get = partial(_text, environ)
    authorities, outbox = get("LOGGING_CA"), get("LOGGING_OUTBOX")
    return LogSettings(
        get("LOGGING_URL"),
        get("LOGGING_TOKEN"),
        get("LOGGING_SECRET"),
        _version(get("LOGGING_VERSION") or "1"),
        get("LOGGING_REDACT"),
        _file("LOGGING_CA", authorities) if authorities else None,
        _file("LOGGING_OUTBOX", outbox) if outbox else None,
        int(_number("LOGGING_OUTBOX_MB", get("LOGGING_OUTBOX_MB") or "50") * 1e6),
    )


def _text(environ: Mapping[str, str], name: str) -> str | None:
    """Variable without the spaces and line ends around it, which a file or a copied line leaves there; None if it is empty."""
    return environ.get(name, "").strip() or None


MEMORY = "memory:"
"""URL of no history at all, for who has begun to save one on the page."""


def history_settings(url: str | None, environ: Mapping[str, str] = os.environ, saved: Path | None = None) -> HistorySettings:
    """HistorySettings from --history, else QLORA_CHAT_HISTORY, else the file `saved` if there is one; password, keys and days
    from the environment only."""
    days = environ.get("QLORA_CHAT_HISTORY_DAYS")
    named = (url or "").strip() or _text(environ, "QLORA_CHAT_HISTORY")
    if named is None and saved and saved.is_file():
        named = f"sqlite:///{saved}"
    return HistorySettings(
        None if named == MEMORY else named,
        _text(environ, "QLORA_CHAT_HISTORY_PASSWORD"),
        _text(environ, "QLORA_CHAT_HISTORY_KEY"),
        _number("QLORA_CHAT_HISTORY_DAYS", days) if days else None,
        _text(environ, "QLORA_CHAT_HISTORY_OLD_KEY"),
    )


def _version(text: str) -> int:
    if text not in ("1", "2"):
        raise SettingsError(f"LOGGING_VERSION is {text!r}, but must be 1 or 2")
    return int(text)


def _file(name: str, text: str) -> Path:
    """Path with a leading ~ replaced. SettingsError that names the variable for a URL and for an unknown user's home."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text) and not re.match(r"[A-Za-z]:/", text):
        raise SettingsError(f"{name} is {text!r}, but must be the path of a file, without a scheme")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise SettingsError(f"{name} is {text!r}, but no home folder of that name is known") from None


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SettingsError(f"{name} is {text!r}, but must be a number")
    return number


def data_file(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """File to which a person has the page save conversations, in the user's data folder (XDG, or the system's own)."""
    if platform == "win32":
        folder = Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return folder / "qlora-chat" / "chats.db"


def training_folder(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Folder to which the page writes training runs, beside the file of data_file."""
    return data_file(environ, platform).parent / "training"


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
    trusted_proxies: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> ReceiverSettings:
    """ReceiverSettings with the tokens and the secret that senders have: LOGGING_TOKEN, LOGGING_TOKENS and LOGGING_SECRET."""
    token, secret = _text(environ, "LOGGING_TOKEN"), _text(environ, "LOGGING_SECRET")
    return ReceiverSettings(
        host, port, token, secret, tuple(allowed_hosts), certificate, key, _senders(environ.get("LOGGING_TOKENS", "")),
        tuple(trusted_proxies),
    )  # fmt: skip


def _senders(text: str) -> dict[str, str]:
    """Token of each sender by its name, from "NAME:TOKEN,NAME:TOKEN". SettingsError quotes no token."""
    senders: dict[str, str] = {}
    for number, each in enumerate(text.replace(",", " ").split(), start=1):
        name, _, token = each.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or not token or name in senders or token in senders.values():
            raise SettingsError(
                f"entry {number} of LOGGING_TOKENS must be NAME:TOKEN; a name has 1 to 64 of a-z, A-Z, 0-9, '._-', and "
                "no two entries may have the same name or token"
            )
        senders[name] = token
    return senders


def engine_settings(engine: str, model: str | None = None, environ: Mapping[str, str] = os.environ) -> EngineSettings:
    """EngineSettings from "local", or addresses with commas between; key and authority from QLORA_CHAT_ENGINE_KEY and _CA."""
    if engine == "local":
        return EngineSettings((), model)
    urls = tuple(server_url(each.strip()) for each in engine.split(","))
    authority = _text(environ, "QLORA_CHAT_ENGINE_CA")
    return EngineSettings(urls, model, _text(environ, "QLORA_CHAT_ENGINE_KEY"), Path(authority) if authority else None)


def page_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """The page's password from QLORA_CHAT_TOKEN; never from argv, which every user can read."""
    return _text(environ, "QLORA_CHAT_TOKEN")


def api_tokens(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Tokens for API clients from QLORA_CHAT_API_TOKENS, separated by commas or white space."""
    return tuple(environ.get("QLORA_CHAT_API_TOKENS", "").replace(",", " ").split())


def operator_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """The operator's token from QLORA_CHAT_OPERATOR_TOKEN."""
    return _text(environ, "QLORA_CHAT_OPERATOR_TOKEN")


def traces_endpoint(environ: Mapping[str, str] = os.environ) -> str | None:
    """Endpoint for traces from OpenTelemetry's own variables; None where they name none, or switch traces off."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    return _text(environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or _text(environ, "OTEL_EXPORTER_OTLP_ENDPOINT")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Folder of merged and quantised weights: QLORA_CHAT_CACHE, else in the user's cache folder (XDG)."""
    if own := environ.get("QLORA_CHAT_CACHE"):
        return Path(own).expanduser()
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora-chat"


def cpu_isa(environ: Mapping[str, str] = os.environ) -> CpuIsa | None:
    """The instructions that the CPU backend may assume, from QLORA_CHAT_CPU_ISA; None for all that the CPU has.

    SettingsError for an unknown name. Whether the CPU has them is for the backend to say.
    """
    text = environ.get("QLORA_CHAT_CPU_ISA", "").strip().lower()
    if not text:
        return None
    for isa in CPU_ISAS:
        if isa == text:
            return isa
    raise SettingsError(f"QLORA_CHAT_CPU_ISA is {text[:80]!r}, but must be one of {', '.join(CPU_ISAS)}, or unset")


def hub_cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Folder of the Hub client's downloads: HF_HUB_CACHE, else HF_HOME/hub, else in the user's cache folder (XDG)."""
    if own := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    return _hub_home(environ) / "hub"


def hub_is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """True if HF_HUB_OFFLINE forbids requests to the Hub."""
    return environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_token_is_set(environ: Mapping[str, str] = os.environ) -> bool:
    """True if HF_TOKEN or the Hub's client has a token; only the client reads it."""
    return bool(environ.get("HF_TOKEN")) or (_hub_home(environ) / "token").is_file()


def _hub_home(environ: Mapping[str, str]) -> Path:
    if own := environ.get("HF_HOME"):
        return Path(own).expanduser()
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"


def gradio_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The path of this process's own folder for Gradio; web/gradio_overrides.py creates and removes it.

    Gradio's own choice is /tmp/gradio, which another user can own, fill or read. Nobody can guess this name.
    """
    return Path(environ.get("TMPDIR") or "/tmp") / _GRADIO_FOLDER


def quiet_libraries(environ: Any = os.environ) -> None:
    """Turn off telemetry and notices of Gradio and the Hub client; call before importing them."""
    environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # else it builds a table of all past events after each one
    environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    environ["GRADIO_TEMP_DIR"] = str(gradio_folder(environ))
    environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")  # a terminal that does not answer would get a warning instead of a prompt
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    environ.setdefault(
        "MPLCONFIGDIR", str(cache_folder(environ) / "matplotlib")
    )  # Gradio imports it, and it keeps a list of fonts
