"""``kind: http``: scores from any service that speaks this protocol.

Request, one POST for up to ``batch_size`` rows::

    {"id": "5e88...", "items": [{"id": "2bb8...", "prompt": "...", "response": "..."}, ...]}

Answer, status 200::

    {"items": [{"id": "2bb8...", "score": 0.25}, ...]}

An item of a conversation has ``history`` too, the turns before the prompt:
``[{"role": "user", "content": "..."}, ...]``. The answer may list its items in any order; the ids say which is which.
Every id stands there once, and every score is a finite number. A service that cannot score a row answers with a status
of 4xx or 5xx, not with a number. Equal rows have equal ids, and a repeated request has the header ``Idempotency-Key``
of the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from dualign.scorers.http.address import display_name
from dualign.scorers.http.faults import TransientFault
from dualign.scorers.http.pacing import SYSTEM_CLOCK, Clock
from dualign.scorers.http.remote import RemoteScorer, RemoteSpec, Row, messages, remote_scorer
from dualign.scorers.spec import Setting


class PlainSpec(RemoteSpec):
    """Keys of ``kind: http``."""

    batch_size: int = Field(default=16, ge=1)
    """Rows of one request."""


class _Item(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str
    score: FiniteFloat


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)

    items: list[_Item]


@dataclass(frozen=True, slots=True)
class PlainExchange:
    """The protocol at the top of this file."""

    url: str
    version: str = ""
    batch_size: int = 16

    @property
    def name(self) -> str:
        """Return the kind and the address."""
        return f"http({display_name(self.url)})"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return the address and the version."""
        return {"kind": "http", "url": self.url, "version": self.version}

    def body(self, request_id: str, rows: Sequence[Row]) -> Mapping[str, Any]:
        """Return the request."""
        return {"id": request_id, "items": [_item(row) for row in rows]}

    def scores(self, answer: Any, rows: Sequence[Row]) -> dict[str, float]:
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
    return {**item, "history": messages(row.history)} if row.history else item


def first_mistake(error: ValidationError) -> str:
    """Return what a schema holds against an answer, without the answer's own content."""
    mistake = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, mistake["loc"]))
    return f"{where}: {mistake['msg']}" if where else mistake["msg"]


def build(spec: PlainSpec, setting: Setting, *, clock: Clock = SYSTEM_CLOCK) -> RemoteScorer:
    """Return the scorer that ``spec`` describes."""
    exchange = PlainExchange(spec.url, spec.version, spec.batch_size)
    return remote_scorer(spec, setting, exchange, kind="http", clock=clock)
