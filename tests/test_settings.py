"""Bad settings are refused where they are made, with the field, the value and the range."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qlora_chat import settings
from qlora_chat.settings import (
    EngineSettings,
    LogSettings,
    ModelSettings,
    ReceiverSettings,
    Sampling,
    ServeSettings,
    SettingsError,
    receiver_settings,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
        for value in (math.nan, math.inf, -math.inf, 1e309, -1, 2**63, 10**400, True, False, "1", None, [1])
    ]
    + [("seed", value) for value in (math.nan, -1, 2**63, True, "1", 0.5)]
    + [
        ("top_k", 1.5),
        ("top_k", 201),
        ("temperature", 2.01),
        ("top_p", 1.001),
        ("min_p", 1.001),
        ("repetition_penalty", 0.99),
        ("max_new_tokens", 0),
    ],
)
def test_a_bad_sampling_value_is_named_with_its_range(field: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert field in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "from" in str(caught.value)


def test_numbers_that_json_and_sliders_blur_are_taken_for_what_they_are() -> None:
    sampling = Sampling(temperature=1, top_k=40.0)  # type: ignore[arg-type]
    assert isinstance(sampling.temperature, float)
    assert isinstance(sampling.top_k, int)


def test_changed_keeps_the_rest_and_refuses_unknown_names() -> None:
    assert Sampling(seed=3).changed(temperature=0) == Sampling(temperature=0.0, seed=3)
    with pytest.raises(SettingsError, match="unknown sampling setting 'warmth'; known: temperature"):
        Sampling().changed(warmth=1)
    with pytest.raises(SettingsError, match="unknown sampling setting 'self'"):
        Sampling().changed(**{"self": 1})


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/log",
        "ftp://example.com",
        "example.com",
        "https://",
        "http://10.0.0.1/",
        "http://[",
        "https://h:99999/",
    ],
)
def test_a_log_goes_over_https_or_stays_on_this_machine(url: str) -> None:
    with pytest.raises(SettingsError, match="LOGGING_URL"):
        LogSettings(url)


@pytest.mark.parametrize(
    "url", ["https://example.com/log", "http://127.0.0.1:9/", "http://localhost:9/x", "http://[::1]:9/", None]
)
def test_addresses_a_log_may_go_to(url: str | None) -> None:
    assert LogSettings(url).url == url


def test_what_ships_listens_here_only_bounds_its_queue_and_keeps_and_sends_nothing() -> None:
    serving = ServeSettings()
    assert (serving.host, serving.queue, serving.request_seconds) == ("127.0.0.1", 128, 600.0)
    assert (serving.allowed_hosts, serving.api_tokens, serving.log_requests) == ((), (), False)
    assert Sampling().max_new_tokens <= 2048
    assert (settings.log_settings({}).url, settings.history_settings(None, {}).url) == (None, None)


def test_listening_beyond_this_machine_needs_a_password() -> None:
    with pytest.raises(SettingsError, match="QLORA_CHAT_TOKEN"):
        ServeSettings("0.0.0.0")
    assert ServeSettings("0.0.0.0", token="correct horse").host == "0.0.0.0"
    assert ServeSettings("::1").host == "::1"


def test_an_adapter_without_its_base_is_refused() -> None:
    with pytest.raises(SettingsError, match="--adapter a needs --base"):
        ModelSettings(adapter="a")
    with pytest.raises(SettingsError, match="--precision is 'int3', but must be one of auto, bf16, nf4"):
        ModelSettings(precision="int3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base": "b", "adapter": "a", "precision": "bf16"}, "leave out --precision bf16"),
        ({"base": "b", "adapters": (("one", "a"),)}, "adapters with names are never merged"),
        ({"base": "b"}, "needs --adapter"),
        ({"adapter_mode": "merged"}, "--adapter-mode is 'merged', but must be one of auto, exact"),
    ],
)
def test_an_exact_adapter_is_beside_an_nf4_base(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        ModelSettings(**{"adapter_mode": "exact", **given})


def test_fewer_cpu_instructions_are_one_of_the_named_sets_or_unset() -> None:
    named = [settings.cpu_isa({"QLORA_CHAT_CPU_ISA": text}) for text in ("avx512", " AVX2 ", "plain", "")]
    assert named == ["avx512", "avx2", "plain", None]
    assert settings.cpu_isa({}) is None
    with pytest.raises(SettingsError, match="QLORA_CHAT_CPU_ISA is 'native', but must be one of avx512, avx2, plain"):
        settings.cpu_isa({"QLORA_CHAT_CPU_ISA": "native"})


def test_the_environment_is_read_in_one_place() -> None:
    assert settings.log_settings({}).url is None
    assert settings.log_settings({"LOGGING_URL": ""}).url is None
    assert settings.page_token({"QLORA_CHAT_TOKEN": "t"}) == "t"
    assert str(settings.cache_folder({"XDG_CACHE_HOME": "/x"})) == "/x/qlora-chat"
    assert str(settings.cache_folder({"QLORA_CHAT_CACHE": "/y", "XDG_CACHE_HOME": "/x"})) == "/y"
    assert settings.hub_is_offline({"HF_HUB_OFFLINE": "1"})
    assert not settings.hub_is_offline({})


def test_where_answers_are_computed_is_read_from_one_option() -> None:
    assert settings.engine_settings("local") == EngineSettings()
    environ = {"QLORA_CHAT_ENGINE_KEY": "secret"}
    two = settings.engine_settings("http://127.0.0.1:8000/v1/, https://gpu.example/api/v1", "chat", environ)
    assert two.urls == ("http://127.0.0.1:8000/v1", "https://gpu.example/api/v1")
    assert (two.model, two.key) == ("chat", "secret")
    assert "secret" not in repr(two)
    assert settings.engine_settings("http://box:8000").urls == ("http://box:8000/v1",), "what everyone leaves out"
    assert settings.engine_settings("http://box:8000").unencrypted == ("http://box:8000/v1",)
    assert not settings.engine_settings("http://localhost:8000,https://box").unencrypted


@pytest.mark.parametrize(
    "engine",
    [
        "",
        "box:8000",
        "ftp://box/v1",
        "http://",
        "http://box:99999",
        "http://box/v1,",
        "http://box/v1?key=1",
        "http://a,http://a/v1",
    ],
)
def test_an_address_that_is_none_is_refused(engine: str) -> None:
    with pytest.raises(SettingsError, match="--engine"):
        settings.engine_settings(engine, None, {})


def test_a_key_in_an_address_is_refused_and_where_it_belongs_is_said() -> None:
    with pytest.raises(SettingsError, match="QLORA_CHAT_ENGINE_KEY") as caught:
        settings.engine_settings("https://me:secret@box/v1", None, {})
    assert "secret" not in str(caught.value)


def test_a_model_of_other_servers_needs_servers() -> None:
    with pytest.raises(SettingsError, match="--engine http"):
        settings.engine_settings("local", "chat", {})


def test_an_authority_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="QLORA_CHAT_ENGINE_CA"):
        settings.engine_settings("https://box", None, {"QLORA_CHAT_ENGINE_CA": "/nowhere.pem"})


def test_senders_of_a_receiver_have_a_name_and_a_token_each() -> None:
    def senders(text: str) -> Mapping[str, str]:
        environ = {"LOGGING_TOKENS": text, "LOGGING_TOKEN": "shared"}
        return receiver_settings("127.0.0.1", 9000, (), None, None, environ=environ).senders

    assert senders("anna:token-a, ben:to:ken-b") == {"anna": "token-a", "ben": "to:ken-b"}
    assert senders("") == {}
    for wrong in ("token-a", "anna:", ":token-a", "an/na:token-a", "anna:x,anna:y", "anna:x,ben:x", f"{'a' * 65}:x"):
        with pytest.raises(SettingsError, match="LOGGING_TOKENS must be NAME:TOKEN") as raised:
            senders(wrong)
        assert "token-a" not in str(raised.value)
    with pytest.raises(SettingsError, match="also the token of a sender"):
        senders("anna:shared")


@pytest.mark.parametrize("secrets", [{"token": "short"}, {"token": "x" * 12, "api_tokens": ("short",)}])
def test_a_short_password_is_refused_where_other_machines_can_try_it(secrets: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="12 characters or more"):
        ServeSettings("0.0.0.0", **secrets)
    for here in ("127.0.0.1", "::1", "localhost", "127.1"):
        assert ServeSettings(here, **secrets).token


def test_the_operators_token_is_its_own_and_a_proxy_is_an_address() -> None:
    with pytest.raises(SettingsError, match="QLORA_CHAT_OPERATOR_TOKEN"):
        ServeSettings(token="correct horse", operator_token="correct horse")
    with pytest.raises(SettingsError, match="--trusted-proxy"):
        ServeSettings(trusted_proxies=("proxy.example",))
    with pytest.raises(SettingsError, match="so a password is needed: set QLORA_CHAT_TOKEN"):
        ServeSettings(trusted_proxies=("127.0.0.1",))
    assert settings.operator_token({"QLORA_CHAT_OPERATOR_TOKEN": "o"}) == "o"


def test_spaces_and_line_ends_around_secrets_and_addresses_are_no_part_of_them() -> None:
    log = settings.log_settings({"LOGGING_URL": " https://a/log\n", "LOGGING_TOKEN": "tok\n", "LOGGING_SECRET": "\ts\r\n"})
    assert (log.url, log.token, log.secret) == ("https://a/log", "tok", "s")
    assert settings.page_token({"QLORA_CHAT_TOKEN": "correct horse\n"}) == "correct horse"
    assert settings.operator_token({"QLORA_CHAT_OPERATOR_TOKEN": "\n"}) is None
    assert settings.engine_settings("http://a/v1 , http://b/v1", environ={"QLORA_CHAT_ENGINE_KEY": "k\n"}).key == "k"
    assert settings.history_settings(None, {"QLORA_CHAT_HISTORY": "jsonl:x\n"}).url == "jsonl:x"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("LOGGING_TOKEN", lambda secret: LogSettings("https://a/log", secret)),
        ("LOGGING_TOKEN", lambda secret: ReceiverSettings(token=secret)),
        ("LOGGING_TOKENS", lambda secret: ReceiverSettings(senders={"anna": secret})),
        ("QLORA_CHAT_TOKEN", lambda secret: ServeSettings(token=secret)),
        ("QLORA_CHAT_OPERATOR_TOKEN", lambda secret: ServeSettings(operator_token=secret)),
        ("QLORA_CHAT_API_TOKENS", lambda secret: ServeSettings(token="a password", api_tokens=("good", secret))),
        ("QLORA_CHAT_ENGINE_KEY", lambda secret: EngineSettings(("http://a/v1",), key=secret)),
    ],
)
@pytest.mark.parametrize("secret", ["ключ-ключ-ключ", "one\ntwo-and-three", "caf\xe9-and-more", "nul\0nul-nul-nul"])
def test_a_secret_that_no_header_carries_is_refused_by_its_variable(
    name: str, make: Callable[[str], object], secret: str
) -> None:
    with pytest.raises(SettingsError, match=f"{name} has characters that no HTTP header can carry") as raised:
        make(secret)
    assert secret not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_authorities_without_a_certificate_are_refused_by_their_variable(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="LOGGING_CA is .* holds no certificate that can be read"):
        LogSettings("https://a/log", certificates=file)
    with pytest.raises(SettingsError, match="QLORA_CHAT_ENGINE_CA is .* holds no certificate that can be read"):
        settings.engine_settings("https://a/v1", environ={"QLORA_CHAT_ENGINE_CA": str(file)})


def test_two_ways_to_sign_in_at_the_receiver_are_refused() -> None:
    with pytest.raises(SettingsError, match="LOGGING_URL holds a user and a password, and LOGGING_TOKEN is set") as raised:
        LogSettings("https://me:hunter2@a/log", "a-token")
    assert "hunter2" not in str(raised.value)
    assert LogSettings("https://me:hunter2@a/log").token is None


@pytest.mark.parametrize("url", ["https://a b/log", "https://a/l\nog", "https://a..b/log", "https://" + "a" * 64 + "/log"])
def test_an_address_that_no_request_can_have_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="LOGGING_URL must look like"):
        LogSettings(url)


@pytest.mark.parametrize("host", ["127.0.0.1:7915", "http://localhost", "localhost:80/", "my host", "", "7915", "[::1]:80"])
def test_a_host_with_anything_else_is_explained(host: str) -> None:
    with pytest.raises(SettingsError, match="--host is .*, but must be an address or a host name alone") as raised:
        ServeSettings(host)
    assert ("--port 7915" in str(raised.value)) == (host == "127.0.0.1:7915")
    with pytest.raises(SettingsError, match="--host is"):
        ReceiverSettings(host)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"LOGGING_VERSION": "1.5"}, "LOGGING_VERSION is '1.5', but must be 1 or 2"),
        ({"LOGGING_OUTBOX": "sqlite:///x.db"}, "LOGGING_OUTBOX is 'sqlite:///x.db', but must be the path of a file"),
        ({"LOGGING_OUTBOX": "~nobody-here/x.db"}, "LOGGING_OUTBOX is '~nobody-here/x.db', but no home folder of that name"),
        ({"LOGGING_CA": "file:///ca.pem"}, "LOGGING_CA is 'file:///ca.pem', but must be the path of a file"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_named(environ: Mapping[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        settings.log_settings(environ)


@pytest.mark.parametrize("name", ["", " ", "*", "http://chat.example.org", "chat.example.org:8000", "a b"])
def test_a_host_that_no_browser_sends_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="--allow-host is .* but must be a host name or an address alone"):
        ServeSettings(allowed_hosts=(name,))


def test_the_folder_of_the_hubs_client_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "token").write_text("t")
    environ = {"HF_HOME": "~/hub"}
    assert settings.hub_token_is_set(environ)
    assert settings.hub_cache_folder(environ) == tmp_path / "hub" / "hub"
