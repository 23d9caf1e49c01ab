"""The model, and the engine that runs it: this process, or servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from qlora_chat.settings.checks import (
    SettingsError,
    adapter_name,
    check_authorities,
    check_header_secret,
    http_url,
    is_loopback,
    one_of,
)

Precision = Literal["auto", "bf16", "nf4"]
Device = Literal["auto", "cuda", "cpu"]
KVCacheDtype = Literal["auto", "int8"]
AdapterMode = Literal["auto", "exact"]
BaseForm = Literal["nf4", "16-bit"]
"""Form of the base under an adapter: dequantized from NF4 where the weights are held in bf16, or the original weights."""
DEFAULT_PROMPT_FORMAT = "guanaco"
"""Of models and adapters that declare none."""
CpuIsa = Literal["avx512", "avx2", "plain"]
CPU_ISAS: tuple[CpuIsa, ...] = ("avx512", "avx2", "plain")
"""From more instructions to fewer; plain: none of the backend's C++ at all."""


@dataclass(frozen=True)
class ModelSettings:
    """The model to talk to and how it is loaded."""

    model: str = "auto"
    """auto, guanaco-7b, smollm2 or demo; ignored when base is given."""
    base: str | None = None
    """Hub id, folder or .gguf file of a LLaMA-family base."""
    adapter: str | None = None
    """Hub id or folder of a PEFT LoRA adapter; None talks to the base alone."""
    precision: Precision = "auto"
    device: Device = "auto"
    prompt_format: str | None = None
    """Name of a prompt format; None takes what the adapter declares, else guanaco."""
    slots: int | None = None
    """Chats that share one forward pass; None fits them to memory."""
    adapters: tuple[tuple[str, str], ...] = ()
    """(name, Hub id or folder) of unmerged LoRA adapters for requests to choose from."""
    kv_cache_dtype: KVCacheDtype = "auto"
    """int8: keys and values in 8 bits, on a graphics card only; auto: as the forward pass computes them."""
    adapter_mode: AdapterMode = "auto"
    """exact: the base in NF4 and the adapter unmerged; auto: that for adapters trained so, else merged where memory allows."""
    base_form: BaseForm | Literal["auto"] = "auto"
    """Form of the base that adapters are applied to; auto: the one that they were trained on. A base in NF4 has no other."""

    def __post_init__(self) -> None:
        one_of("model", self.model, ("auto", "guanaco-7b", "smollm2", "demo"))
        one_of("precision", self.precision, ("auto", "bf16", "nf4"))
        one_of("device", self.device, ("auto", "cuda", "cpu"))
        one_of("kv-cache-dtype", self.kv_cache_dtype, ("auto", "int8"))
        one_of("adapter-mode", self.adapter_mode, ("auto", "exact"))
        one_of("base-form", self.base_form, ("auto", "nf4", "16-bit"))
        if self.kv_cache_dtype == "int8" and self.device == "cpu":
            raise SettingsError("--kv-cache-dtype int8 is for a graphics card: leave it out, or use --device cuda")
        if self.adapter and not self.base:
            raise SettingsError(f"--adapter {self.adapter} needs --base, the model it was tuned on")
        if self.adapters and (self.adapter or not self.base):
            raise SettingsError("named adapters need --base: --base BASE --adapter NAME=PATH --adapter NAME=PATH")
        if self.adapter_mode == "exact":
            self._check_exact()
        for name, _ in self.adapters:
            adapter_name(name)
        if len({name for name, _ in self.adapters}) < len(self.adapters):
            raise SettingsError("two adapters have the same name")
        if self.slots is not None and not 1 <= self.slots <= 256:
            raise SettingsError(f"slots is {self.slots!r}, but must be a whole number from 1 to 256")

    def _check_exact(self) -> None:
        if self.precision == "bf16":
            raise SettingsError("--adapter-mode exact loads the base in NF4, as in training: leave out --precision bf16")
        if self.adapters:
            raise SettingsError("adapters with names are never merged: leave out --adapter-mode exact")
        if self.base and not self.adapter:
            raise SettingsError("--adapter-mode exact needs --adapter, the one to leave unmerged")


@dataclass(frozen=True)
class EngineSettings:
    """The engine: this process, or servers with OpenAI's API."""

    urls: tuple[str, ...] = ()
    """Each server's address up to /v1; () computes in this process."""
    model: str | None = None
    """The model's name on the servers; None uses the only one they list."""
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token."""
    ca_file: Path | None = None
    """Certificates that sign the servers' own; None trusts the usual authorities."""

    def __post_init__(self) -> None:
        check_header_secret("QLORA_CHAT_ENGINE_KEY", self.key)
        check_authorities("QLORA_CHAT_ENGINE_CA", self.ca_file)
        if len(set(self.urls)) < len(self.urls):
            raise SettingsError("--engine names a server twice")
        if self.model and not self.urls:
            raise SettingsError(
                f"--engine-model {self.model} names a model of other servers: name them with --engine http://..."
            )

    @property
    def unencrypted(self) -> tuple[str, ...]:
        """Servers that receive conversations unencrypted over a network."""
        return tuple(url for url in self.urls if url.startswith("http:") and not is_loopback(urlsplit(url).hostname or ""))


def server_url(text: str) -> str:
    """A server's address without a trailing slash; "/v1" is its path if it has none. SettingsError for an invalid one."""
    message = f"--engine is {text!r}, but must be local, or http://HOST:PORT/v1 (several with commas between)"
    parts = http_url(text, message)
    if parts.query or parts.fragment:
        raise SettingsError(message)
    if parts.username or parts.password:
        raise SettingsError("--engine holds a password, which every user of this machine can read: set QLORA_CHAT_ENGINE_KEY")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
