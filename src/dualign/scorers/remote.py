"""A scorer behind an address: every distinct row is asked for once, kept, and never asked for again."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError, model_validator

from dualign.errors import ScorerError
from dualign.hashing import canonical_digest
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt, Turn
from dualign.scorers.http_client import (
    SYSTEM_CLOCK,
    VARIABLE,
    Client,
    Clock,
    FinalFault,
    Pace,
    Retries,
    ScoreCache,
    Stopped,
    TransientFault,
    check_url,
    default_folder,
    display_name,
    read_key,
    transport,
)
from dualign.scorers.spec import RESPONSE, ScorerSpec, Setting, conversation_text, fill, revision_of
from dualign.strict import parse_json


class RemoteSpec(ScorerSpec):
    """The keys that all scorers behind an address have."""

    url: str
    """Address that is posted to, http or https; redirects are not followed."""
    version: str = ""
    """Change it when the numbers behind the address change: what was kept under the old one is then not used."""
    key_from: str | None = None
    """Environment variable with the key, sent as ``Authorization: Bearer``; none: no key is sent."""
    timeout: FiniteFloat = Field(default=60.0, gt=0)
    """Seconds from a request to the last byte of its answer."""
    attempts: int = Field(default=5, ge=1)
    """Requests in all before the scorer gives up on a row."""
    backoff: FiniteFloat = Field(default=1.0, ge=0)
    """Seconds of the first wait after a failure; each further one is twice as long, between half of it and all."""
    max_wait: FiniteFloat = Field(default=60.0, ge=0)
    """Longest wait in seconds; a server that asks for more (``Retry-After``) ends the command."""
    requests_per_second: FiniteFloat | None = Field(default=None, gt=0)
    """Limit over all threads, retries included; none: no limit."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Requests under way at once."""
    cache: str | None = None
    """Folder of kept scores; none: ``dualign/scores`` in the user's cache folder."""

    @model_validator(mode="after")
    def _safe_to_ask(self) -> Self:
        check_url(self.url)
        if self.key_from is not None and not VARIABLE.fullmatch(self.key_from):
            # Not repeated: it may be the key itself.
            raise ValueError(
                "key_from: not the name of an environment variable (A-Z, 0-9, _); the key itself must not stand here"
            )
        return self


@dataclass(frozen=True, slots=True)
class Row:
    """One response to be scored."""

    id: str
    """Hash of the scorer's revision, the prompt with its history, and the response."""
    prompt: str
    history: tuple[Turn, ...]
    response: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """How one kind of remote scorer words a request and reads its answer."""

    name: str
    """What the scorer is called in reports."""
    batch_size: int
    """Rows of one request."""
    facts: Mapping[str, Any]
    """All that determines the numbers."""
    body: Callable[[str, Sequence[Row]], Mapping[str, Any]]
    """(id of the request, rows) -> the JSON object to send."""
    scores: Callable[[Any, Sequence[Row]], dict[str, float]]
    """(answer, rows) -> a finite score for each row id, and for nothing else; raises ``TransientFault`` for an answer
    that has another form than agreed."""


class Reply(BaseModel):
    """A part of an answer; what is not named here is passed over."""

    model_config = ConfigDict(strict=True)


@dataclass(frozen=True, slots=True)
class RemoteScorer:
    """Asks for the rows that are not kept yet, several requests at once."""

    id: str
    """The kind and what is asked."""
    revision: str
    """Hash of the address, the version and the kind's own settings; never of the key."""
    direction: Direction
    exchange: Exchange
    client: Client
    cache: ScoreCache
    concurrency: int

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a row has no score after all attempts; those that have one are kept.
            DataError: a kept score is damaged.
        """
        rows = [_row(self.revision, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        distinct = {row.id: row for row in rows}
        known = self.cache.read(distinct)
        missing = [row for id, row in distinct.items() if id not in known]
        try:
            known |= self._ask(missing)
        except FinalFault as fault:
            kept = len(self.cache.read(distinct))
            raise ScorerError(
                f"scorer {self.id}: {fault}; {kept} of {len(distinct)} rows are scored and kept, "
                "and the same command sends the others only"
            ) from fault
        return np.array([known[row.id] for row in rows], dtype=np.float64)

    def _ask(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the scores of ``rows``; the first request that fails for good stops those not begun."""
        stop, size = threading.Event(), self.exchange.batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="scorer")
        found: dict[str, float] = {}
        try:
            for done in as_completed([pool.submit(self._send, batch, stop) for batch in batches]):
                # One that was stopped is no news: the failure that stopped it is still to come.
                if not isinstance(done.exception(), Stopped):
                    found |= done.result()
        finally:
            # Also on Ctrl-C; requests under way end by themselves, and what they bring is kept.
            stop.set()
            pool.shutdown(cancel_futures=True)
        return found

    def _send(self, rows: Sequence[Row], stop: threading.Event) -> dict[str, float]:
        request_id = canonical_digest([row.id for row in rows])
        try:
            scores = self.client.ask(
                self.exchange.body(request_id, rows),
                request_id=request_id,
                read=lambda answer: self.exchange.scores(answer, rows),
                stop=stop,
            )
            self.cache.write(scores)
        except BaseException:
            # Set here, before this thread can take up another request.
            stop.set()
            raise
        return scores


def _row(revision: str, prompt: Prompt, response: str) -> Row:
    said = [[turn.role, turn.text] for turn in prompt.history]
    return Row(canonical_digest([revision, said, prompt.text, response]), prompt.text, prompt.history, response)


def remote_scorer(spec: RemoteSpec, setting: Setting, exchange: Exchange, *, kind: str, clock: Clock) -> RemoteScorer:
    """Return the scorer that speaks ``exchange`` with the address of ``spec``; nothing is sent yet.

    Raises:
        MissingError: the variable with the key is not set.
        ConfigError: the key cannot be sent.
    """
    client = Client(
        transport(spec.url, timeout=spec.timeout),
        Retries(spec.attempts, spec.backoff, spec.max_wait),
        Pace(spec.requests_per_second, clock),
        clock,
        read_key(spec.key_from, kind),
    )
    folder = default_folder() if spec.cache is None else setting.folder / Path(spec.cache).expanduser()
    # One folder a revision: that of a scorer that is no longer used can be deleted by hand.
    revision = revision_of(**exchange.facts)
    cache = ScoreCache(folder / revision)
    return RemoteScorer(exchange.name, revision, setting.direction, exchange, client, cache, spec.concurrency)


class PlainSpec(RemoteSpec):
    """Keys of ``kind: http``."""

    batch_size: int = Field(default=16, ge=1)
    """Rows of one request."""


class _Item(Reply):
    id: str
    score: FiniteFloat


class _Answer(Reply):
    items: list[_Item]


def plain_scores(answer: Any, rows: Sequence[Row]) -> dict[str, float]:
    """Return the score of each row by its id.

    Raises:
        TransientFault: an id is missing, unknown or given twice, or a score is not a finite number.
    """
    try:
        items = _Answer.model_validate(answer).items
    except ValidationError as error:
        raise TransientFault(f"the answer has another form: {first_mistake(error)}") from None
    wanted, found = {row.id for row in rows}, {item.id: item.score for item in items}
    if len(items) != len(rows):
        raise TransientFault(f"the answer holds {len(items)} items for {len(rows)} rows")
    if len(found) < len(items):
        raise TransientFault("the answer holds an id twice")
    if found.keys() != wanted:
        raise TransientFault(f"the answer holds {len(found.keys() - wanted)} ids that were not asked for")
    return found


def _item(row: Row) -> dict[str, Any]:
    item = {"id": row.id, "prompt": row.prompt, "response": row.response}
    history = [{"role": turn.role, "content": turn.text} for turn in row.history]
    return {**item, "history": history} if history else item


def first_mistake(error: ValidationError) -> str:
    """Return what a schema holds against an answer, without the answer's own content."""
    mistake = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, mistake["loc"]))
    return f"{where}: {mistake['msg']}" if where else mistake["msg"]


def build_http(spec: PlainSpec, setting: Setting, *, clock: Clock = SYSTEM_CLOCK) -> RemoteScorer:
    """Return the scorer that ``spec`` describes."""
    exchange = Exchange(
        name=f"http({display_name(spec.url)})",
        batch_size=spec.batch_size,
        facts={"kind": "http", "url": spec.url, "version": spec.version},
        body=lambda request_id, rows: {"id": request_id, "items": [_item(row) for row in rows]},
        scores=plain_scores,
    )
    return remote_scorer(spec, setting, exchange, kind="http", clock=clock)


PATH = "/chat/completions"
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
        if RESPONSE not in self.rubric:
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


class _Message(Reply):
    content: str


class _Choice(Reply):
    message: _Message
    finish_reason: str | None = None


class _Completion(Reply):
    choices: list[_Choice] = Field(min_length=1, max_length=1)


class _Verdict(Reply):
    score: FiniteFloat


def build_judge(spec: ChatJudgeSpec, setting: Setting, *, clock: Clock = SYSTEM_CLOCK) -> RemoteScorer:
    """Return the scorer that ``spec`` describes."""
    # All that the judge is told, who it is, and the range.
    told = {*ChatJudgeSpec.model_fields} - {*RemoteSpec.model_fields} | {"url", "version"}
    exchange = Exchange(
        name=f"chat-judge({spec.model})",
        batch_size=1,  # one that saw two responses would compare them
        facts={"kind": "chat-judge", **spec.model_dump(include=told)},
        body=lambda _, rows: _question(spec, rows[0]),
        scores=lambda answer, rows: {rows[0].id: _judged(spec, answer)},
    )
    return remote_scorer(spec, setting, exchange, kind="chat-judge", clock=clock)


def _question(spec: ChatJudgeSpec, row: Row) -> dict[str, Any]:
    told = fill(spec.rubric, prompt=conversation_text(row.history, row.prompt), response=row.response)
    system = [] if spec.system is None else [{"role": "system", "content": spec.system}]
    settings = {"temperature": spec.temperature, "max_tokens": spec.max_tokens}
    sent = {name: value for name, value in settings.items() if value is not None}
    return {"model": spec.model, "messages": [*system, {"role": "user", "content": told}], **sent, **spec.extra}


def _judged(spec: ChatJudgeSpec, answer: Any) -> float:
    """Return the score that a completion holds.

    Raises:
        TransientFault: the completion has another form, was cut, is no JSON object with a finite ``score``, or that
            lies outside the range.
    """
    try:
        (choice,) = _Completion.model_validate(answer).choices
        if choice.finish_reason == "length":
            raise TransientFault("the judge's answer was cut at max_tokens")
        score = _Verdict.model_validate(parse_json(choice.message.content)).score
    except ValidationError as error:
        raise TransientFault(f"the answer has another form: {first_mistake(error)}") from None
    except ValueError as error:
        raise TransientFault(f"the judge did not answer with a JSON object ({error})") from None
    if not spec.minimum <= score <= spec.maximum:
        raise TransientFault(f"the judge's score {score:g} is outside [{spec.minimum:g}, {spec.maximum:g}]")
    return score
