"""Ask the API a question through a client with its defaults, and print the answer. usage: python ask.py CLIENT URL

Runs in the environment of requirements.txt, not in the project's.
"""

# The clients are not installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

MODEL, QUESTION = "scripted", "hi"
KEY: Any = "none"
"""Each library has a type of its own for it."""
MESSAGES: Any = [{"role": "user", "content": QUESTION}]


def openai_client(url: str) -> Any:
    """Client of OpenAI's library."""
    import openai

    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


def openai_chat(url: str) -> str:
    """Chat of an older major version than the project's."""
    return openai_client(url).chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message.content


def openai_responses(url: str) -> str:
    """Streamed response, and one that continues it."""
    client = openai_client(url)
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        first = stream.get_final_response()
    return client.responses.create(model=MODEL, input="again", previous_response_id=first.id).output_text


def langchain_completion(url: str) -> str:
    """Sends null in every field that it has no value for."""
    from langchain_openai import OpenAI

    return OpenAI(model=MODEL, base_url=url, api_key=KEY).invoke(QUESTION)


def langchain_chat(url: str) -> str:
    """Whole, then streamed."""
    from langchain_openai import ChatOpenAI

    model: Any = ChatOpenAI(model=MODEL, base_url=url, api_key=KEY)
    whole, streamed = model.invoke(QUESTION).text, "".join(each.text for each in model.stream(QUESTION))
    assert whole == streamed
    return whole


def langchain_responses(url: str) -> str:
    """The same over /v1/responses, streamed."""
    from langchain_openai import ChatOpenAI

    model: Any = ChatOpenAI(model=MODEL, base_url=url, api_key=KEY, use_responses_api=True)
    whole, streamed = model.invoke(QUESTION).text, "".join(each.text for each in model.stream(QUESTION))
    assert whole == streamed
    return whole


def litellm_chat(url: str) -> str:
    """Whole, then streamed."""
    import litellm

    asked: Any = {"model": f"openai/{MODEL}", "messages": MESSAGES, "api_base": url, "api_key": KEY}
    whole = litellm.completion(**asked).choices[0].message.content
    streamed = "".join(each.choices[0].delta.content or "" for each in litellm.completion(**asked, stream=True))
    assert whole == streamed
    return whole


def litellm_responses(url: str) -> str:
    """Over /v1/responses."""
    import litellm

    response: Any = litellm.responses(model=f"openai/{MODEL}", input=QUESTION, api_base=url, api_key=KEY)
    return response.output[0].content[0].text


def served_model(url: str) -> str:
    """The first model of a server."""
    return openai_client(url).models.list().data[0].id


def mood_class() -> Any:
    """Class of the objects that the structured answers below are."""
    from pydantic import BaseModel

    class Mood(BaseModel):
        """A mood."""

        mood: Literal["happy", "sad"]
        level: Literal[1, 2, 3]

    return Mood


def instructor_object(url: str) -> str:
    """An object in instructor's default mode, a function that has to be called; then the same streamed."""
    import instructor

    mood: Any = mood_class()
    client: Any = instructor.from_openai(openai_client(url))
    asked: Any = {"model": served_model(url), "messages": MESSAGES, "response_model": mood, "max_retries": 0}
    whole = client.chat.completions.create(**asked)
    *_, last = client.chat.completions.create_partial(**asked)
    assert mood.model_validate(last.model_dump())
    return type(whole).__name__


def openai_object(url: str) -> str:
    """OpenAI's own classes, in both formats."""
    client, mood = openai_client(url), mood_class()
    chat = client.chat.completions.parse(model=served_model(url), messages=MESSAGES, response_format=mood)
    response = client.responses.parse(model=served_model(url), input=QUESTION, text_format=mood)
    assert isinstance(response.output_parsed, mood)
    return type(chat.choices[0].message.parsed).__name__


def langchain_object(url: str) -> str:
    """LangChain's default, and with a function."""
    from langchain_openai import ChatOpenAI

    model: Any = ChatOpenAI(model=served_model(url), base_url=url, api_key=KEY)
    mood = mood_class()
    called = model.with_structured_output(mood, method="function_calling").invoke(QUESTION)
    assert isinstance(called, mood)
    return type(model.with_structured_output(mood).invoke(QUESTION)).__name__


def litellm_object(url: str) -> str:
    """A class as response_format."""
    import litellm

    mood = mood_class()
    asked: Any = {"model": f"openai/{served_model(url)}", "messages": MESSAGES, "api_base": url, "api_key": KEY}
    content = litellm.completion(**asked, response_format=mood).choices[0].message.content
    return type(mood.model_validate_json(content)).__name__


def pydantic_ai_object(url: str) -> str:
    """An agent's output type, which is the only tool, and has to be called."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(served_model(url), provider=OpenAIProvider(base_url=url, api_key=KEY))
    agent: Any = Agent(model, output_type=mood_class())
    return type(agent.run_sync(QUESTION).output).__name__


def llm_command(url: str) -> str:
    """The `llm` command, which streams."""
    with tempfile.TemporaryDirectory() as folder:
        entry = f"- model_id: ours\n  model_name: {MODEL}\n  api_base: {url}\n  api_key_name: none\n"
        Path(folder, "extra-openai-models.yaml").write_text(entry)
        command = [str(Path(sys.executable).with_name("llm")), "-m", "ours", "--key", KEY, QUESTION]
        environment = os.environ | {"LLM_USER_PATH": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pydantic_ai_chat(url: str) -> str:
    """An agent, with a second turn."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return _two_turns(Agent(OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=url, api_key=KEY))))


def pydantic_ai_responses(url: str) -> str:
    """The same over /v1/responses."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return _two_turns(Agent(OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=url, api_key=KEY))))


def _two_turns(agent: Any) -> str:
    first = agent.run_sync(QUESTION)
    return agent.run_sync("again", message_history=first.all_messages()).output


def pydantic_ai_responses_object(url: str) -> str:
    """The same over /v1/responses."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIResponsesModel(served_model(url), provider=OpenAIProvider(base_url=url, api_key=KEY))
    agent: Any = Agent(model, output_type=mood_class())
    return type(agent.run_sync(QUESTION).output).__name__


CLIENTS: dict[str, Callable[[str], str]] = {
    each.__name__: each
    for each in (
        openai_chat, openai_responses, langchain_completion, langchain_chat, langchain_responses, litellm_chat,
        litellm_responses, llm_command, pydantic_ai_chat, pydantic_ai_responses,
        instructor_object, openai_object, langchain_object, litellm_object, pydantic_ai_object, pydantic_ai_responses_object,
    )
}  # fmt: skip

if __name__ == "__main__":
    print(f"answer: {CLIENTS[sys.argv[1]](sys.argv[2])}")
