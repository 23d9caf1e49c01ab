"""What every test starts from: no internet, no caches but its own, and the bundled demo opened once."""

from __future__ import annotations

import gc
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from qlora_chat.settings import ModelSettings, quiet_libraries
from tests import WORKERS
from tests.postgres import Server, postgres, programs
from tests.web import browsers

if TYPE_CHECKING:  # the process that only hands out the tests needs no torch, and is ready two seconds earlier
    from qlora_chat.engines.local import LocalEngine
    from qlora_chat.models import LoadedModel
    from qlora_chat.prompt import Prompt

quiet_libraries()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background would hand that on to what it starts
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)  # neither says anything of the program
hypothesis.settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in a browser first, then those of many tests: the last are short, and no process waits long for the other."""
    if WORKERS > 1:
        many = Counter(item.path for item in items)
        items.sort(key=lambda item: (item.get_closest_marker("browser") is None, -many[item.path], item.path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser") is None:
        browsers.close()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    browsers.close()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run's cache folder: what is merged and compiled in it is made once, and the user's own is left alone."""
    folder = tmp_path_factory.getbasetemp().parent / "cache" if WORKERS > 1 else tmp_path_factory.mktemp("cache")
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(folder))
        # or a test would send what waits in the user's own outbox to its receiver
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> None:
    """Full collections, which the program asks for after each merge, pass over what earlier files imported: a third of a
    second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One PostgreSQL for the whole run; each test takes a database of its own, or empties its tables."""
    if programs() is None:
        pytest.skip("NOT TESTED: PostgreSQL, which is not installed here (`make test` installs it where apt is)")
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def demo_cache(own_cache: Path) -> Path:
    """A cache folder in which the demo is already merged, for tests that start the program."""
    from qlora_chat.models.load import load

    folder = own_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        load(ModelSettings(model="demo"), lambda line: None)
    return folder


@pytest.fixture(scope="session")
def demo_fp32(demo_cache: Path) -> LoadedModel:
    """The bundled demo with its merged bf16 weights held in fp32, where rounding does not hide mistakes."""
    import torch

    from qlora_chat.models.load import load

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(demo_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        return load(ModelSettings(model="demo"), lambda line: None, dtype=torch.float32)


@pytest.fixture(scope="session")
def shared_engine(demo_fp32: LoadedModel) -> Iterator[LocalEngine]:
    """One engine over the demo, for tests that leave it as they found it."""
    from qlora_chat.engines.local import LocalEngine

    engine = LocalEngine(lambda: demo_fp32, slots=8)
    yield engine
    engine.close()


@pytest.fixture
def engine(demo_fp32: LoadedModel) -> Iterator[LocalEngine]:
    """An engine of the test's own, with an empty cache."""
    from qlora_chat.engines.local import LocalEngine

    engine = LocalEngine(lambda: demo_fp32, slots=8)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def prompt_for(demo_fp32: LoadedModel) -> Callable[..., Prompt]:
    """A question as the demo reads it."""
    from qlora_chat.context import fit_prompt
    from qlora_chat.messages import Conversation, Message
    from qlora_chat.prompt import DEFAULT_FORMAT

    def prompt(*texts: str) -> Prompt:
        messages = tuple(Message("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(texts))
        return fit_prompt(Conversation(messages=messages), DEFAULT_FORMAT, demo_fp32.tokenizer, demo_fp32.info.window, 256)

    return prompt
