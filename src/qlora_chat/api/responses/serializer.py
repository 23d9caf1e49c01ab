"""JSON of a response, whole and as the events of a stream.

Scope: one answer in OpenAI's Responses format. Clients that accumulate events need them all, numbered and in this order.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from qlora_chat.api.choices import Choice, Delta
from qlora_chat.api.errors import ApiError
from qlora_chat.api.response_schemas import Reason, Usage
from qlora_chat.api.responses.exchange import Exchange
from qlora_chat.api.responses.response_schema import (
    FunctionCall,
    IncompleteDetails,
    OutputMessage,
    OutputText,
    ResponseObject,
    ResponseProblem,
    ResponseUsage,
    Status,
)
from qlora_chat.api.serializers import AnswerSerializer, Json
from qlora_chat.engines import Stream

TEXT = {"format": {"type": "text"}}


class ResponsesSerializer(AnswerSerializer):
    """response, and response.* events."""

    trimmed, done = True, b""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange, self._created = exchange, int(time.time())
        form = exchange.body.form
        self._function = form.function if form else None
        """Name of the function that the answer calls."""
        self._sequence = 0
        self._text = ""
        self._status: Status = "in_progress"

    def started(self, streams: Sequence[Stream]) -> None:
        self._exchange.started(streams[0])

    def opening(self, index: int) -> list[Json]:
        begun = [self._event(f"response.{kind}", response=self._response().model_dump()) for kind in ("created", "in_progress")]
        item = self._item("").model_dump()
        if self._function is not None:
            return [*begun, self._event("response.output_item.added", output_index=0, item=item)]
        return [
            *begun,
            self._event("response.output_item.added", output_index=0, item=item | {"content": []}),
            self._of_part("response.content_part.added", part=OutputText(text="").model_dump()),
        ]

    def delta(self, index: int, delta: Delta, logprobs: bool) -> Json:
        self._text += delta.text
        if self._function is not None:
            return self._of_call("response.function_call_arguments.delta", delta=delta.text)
        return self._of_part("response.output_text.delta", delta=delta.text, logprobs=[])

    def end(self, index: int, reason: Reason) -> list[Json]:
        self._end(reason)
        if self._function is not None:
            kind = "response.function_call_arguments.done"
            last = [self._of_call(kind, name=self._function, arguments=self._text)]
        else:
            last = [
                self._of_part("response.output_text.done", text=self._text, logprobs=[]),
                self._of_part("response.content_part.done", part=OutputText(text=self._text).model_dump()),
            ]
        return [*last, self._event("response.output_item.done", output_index=0, item=self._item(self._text).model_dump())]

    def last(self, usage: Usage, include_usage: bool) -> list[Json]:
        return [self._event(f"response.{self._status}", response=self._finished(usage).model_dump())]

    def failed(self, problem: ApiError) -> list[Json]:
        self._status = "failed"
        code = problem.code or "server_error"
        response = self._response().model_copy(update={"error": ResponseProblem(code=code, message=problem.message)})
        # OpenAI's clients raise an error for an event that has one, and read response.failed without a word
        return [
            self._event("response.failed", response=response.model_dump()),
            self._event("error", code=code, message=problem.message, param=problem.param) | problem.body,
        ]

    def whole(self, choices: Sequence[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> ResponseObject:
        ((choice, reason),) = choices
        self._text = choice.text
        self._end(reason)
        return self._finished(usage)

    def _end(self, reason: Reason) -> None:
        self._status = "completed" if reason == "stop" else "incomplete"

    def _finished(self, usage: Usage) -> ResponseObject:
        self._exchange.ended(self._text)
        response = self._response(self._item(self._text))
        response.usage = ResponseUsage.of(usage)
        response.completed_at = int(time.time()) if self._status == "completed" else None
        response.incomplete_details = IncompleteDetails() if self._status == "incomplete" else None
        return response

    def _response(self, *output: OutputMessage | FunctionCall) -> ResponseObject:
        body = self._exchange.body
        choice = body.tool_choice or "auto"
        return ResponseObject(
            id=self._exchange.id.text("resp"),
            created_at=self._created,
            status=self._status,
            model=body.model,
            output=list(output),
            previous_response_id=body.previous_response_id,
            instructions=body.instructions,
            metadata=body.metadata,
            max_output_tokens=body.max_output_tokens,
            temperature=body.temperature,  # type: ignore[attr-defined]
            top_p=body.top_p,  # type: ignore[attr-defined]
            store=self._exchange.is_stored,
            text={"format": body.text.format.model_dump(by_alias=True, exclude_unset=True)} if body.text.format else TEXT,
            user=body.user or None,
            parallel_tool_calls=body.parallel_tool_calls,
            tools=[each.model_dump(exclude_unset=True) for each in body.tools],
            tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
        )

    def _item(self, text: str) -> OutputMessage | FunctionCall:
        """The one item of the output."""
        status, answer_id = "in_progress" if self._status == "failed" else self._status, self._exchange.id
        if self._function is None:
            return OutputMessage(id=answer_id.text("msg"), status=status, content=[OutputText(text=text)])
        return FunctionCall(
            id=answer_id.text("fc"), status=status, arguments=text, call_id=answer_id.text("call"), name=self._function
        )

    def _of_call(self, kind: str, **fields: Any) -> Json:
        """Event about the function call."""
        return self._event(kind, item_id=self._exchange.id.text("fc"), output_index=0, **fields)

    def _of_part(self, kind: str, **fields: Any) -> Json:
        """Event about the one part of the one message."""
        return self._event(kind, item_id=self._exchange.id.text("msg"), output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Json:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}
