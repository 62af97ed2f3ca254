"""``kind: chat-judge``: a chat model behind the chat-completions API of OpenAI, asked by a rubric for a number.

The rubric is one user message with the prompt and the response inserted as text. The judge has to answer with one
JSON object that holds ``score``; other keys beside it (such as its reasons) are allowed and not kept. An answer in
another form, one that was cut, or a score outside the range is asked for again, and after the last attempt it is an
error: the score is never read out of prose.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError, model_validator

from dualign.scorers.http.faults import TransientFault
from dualign.scorers.http.pacing import SYSTEM_CLOCK, Clock
from dualign.scorers.http.plain import first_mistake
from dualign.scorers.http.remote import RemoteScorer, RemoteSpec, Row, messages, remote_scorer
from dualign.scorers.spec import Setting
from dualign.strict import parse_json

PATH = "/chat/completions"
SLOT = re.compile(r"\{(prompt|response)\}")
OWN_FIELDS = frozenset({"model", "messages", "temperature", "max_tokens", "n", "stream"})


class ChatJudgeSpec(RemoteSpec):
    """Keys of ``kind: chat-judge``; ``url`` ends in ``/chat/completions``."""

    model: str = Field(min_length=1)
    """Name that the server knows the judge by; pin a dated one where there is one."""
    rubric: str
    """What the judge is asked. {response} and {prompt} are replaced by the texts, all other braces stay. It must ask
    for a JSON object with ``score``."""
    minimum: FiniteFloat
    """Least score that the rubric allows."""
    maximum: FiniteFloat
    """Largest score that the rubric allows; one outside the range is an error, it is not clipped."""
    system: str | None = None
    """System message; none: there is none."""
    temperature: FiniteFloat | None = Field(default=0.0, ge=0)
    """null sends none, for models that refuse the field."""
    max_tokens: int | None = Field(default=512, ge=1)
    """Longest answer; one that was cut there is an error. null sends none."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of the request, such as ``response_format: {type: json_object}`` or ``seed: 1``."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if not urlsplit(self.url).path.rstrip("/").endswith(PATH):
            raise ValueError(f"url: the path must end in {PATH}, such as https://api.example.org/v1{PATH}")
        if "{response}" not in self.rubric:
            raise ValueError("rubric: does not contain {response}; the judge would not see what it judges")
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum: {self.minimum:g} is not below maximum {self.maximum:g}")
        if taken := sorted(OWN_FIELDS & self.extra.keys()):
            raise ValueError(
                f"extra: {', '.join(taken)} cannot be set here; model, temperature and max_tokens are keys"
            )
        try:
            json.dumps(self.extra, allow_nan=False)
        except ValueError:
            raise ValueError("extra: holds a number that JSON does not have (NaN or infinity)") from None
        return self


class _Message(BaseModel):
    model_config = ConfigDict(strict=True)

    content: str


class _Choice(BaseModel):
    model_config = ConfigDict(strict=True)

    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    model_config = ConfigDict(strict=True)

    choices: list[_Choice] = Field(min_length=1, max_length=1)


class _Verdict(BaseModel):
    model_config = ConfigDict(strict=True)

    score: FiniteFloat


@dataclass(frozen=True, slots=True)
class ChatJudgeExchange:
    """One row a request."""

    spec: ChatJudgeSpec

    @property
    def name(self) -> str:
        """Return the kind and the model."""
        return f"chat-judge({self.spec.model})"

    @property
    def batch_size(self) -> int:
        """Return 1: a judge that saw two responses would compare them."""
        return 1

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return all that the judge is told, who it is, and the range."""
        told = {
            "url",
            "version",
            "model",
            "rubric",
            "minimum",
            "maximum",
            "system",
            "temperature",
            "max_tokens",
            "extra",
        }
        return {"kind": "chat-judge", **self.spec.model_dump(include=told)}

    def body(self, request_id: str, rows: Sequence[Row]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the request for the one row."""
        (row,) = rows
        spec = self.spec
        system = [] if spec.system is None else [{"role": "system", "content": spec.system}]
        question = {"role": "user", "content": filled(spec.rubric, row)}
        settings = {"temperature": spec.temperature, "max_tokens": spec.max_tokens}
        sent = {name: value for name, value in settings.items() if value is not None}
        return {"model": spec.model, "messages": [*system, question], **sent, **spec.extra}

    def scores(self, answer: Any, rows: Sequence[Row]) -> dict[str, float]:
        """Return the score of the one row.

        Raises:
            TransientFault: the completion has another form, was cut, is no JSON object with a finite ``score``, or
                the score lies outside the range.
        """
        (row,) = rows
        try:
            (choice,) = _Completion.model_validate(answer).choices
            if choice.finish_reason == "length":
                raise TransientFault("the judge's answer was cut at max_tokens")
            score = _Verdict.model_validate(parse_json(choice.message.content)).score
        except ValidationError as error:
            raise TransientFault(f"the answer has another form: {first_mistake(error)}") from None
        except ValueError as error:
            raise TransientFault(f"the judge did not answer with a JSON object ({error})") from None
        if not self.spec.minimum <= score <= self.spec.maximum:
            raise TransientFault(
                f"the judge's score {score:g} is outside [{self.spec.minimum:g}, {self.spec.maximum:g}]"
            )
        return {row.id: score}


def filled(rubric: str, row: Row) -> str:
    """Return ``rubric`` with both texts inserted in one pass: a ``{response}`` inside a prompt stays as it is."""
    texts = {"prompt": transcript(row), "response": row.response}
    return SLOT.sub(lambda slot: texts[slot[1]], rubric)


def transcript(row: Row) -> str:
    """Return the prompt; after other turns, the whole conversation with a line's start saying who speaks."""
    if not row.history:
        return row.prompt
    said = [f"{turn['role']}: {turn['content']}" for turn in messages(row.history)]
    return "\n".join([*said, f"user: {row.prompt}"])


def build(spec: ChatJudgeSpec, setting: Setting, *, clock: Clock = SYSTEM_CLOCK) -> RemoteScorer:
    """Return the scorer that ``spec`` describes."""
    return remote_scorer(spec, setting, ChatJudgeExchange(spec), kind="chat-judge", clock=clock)
