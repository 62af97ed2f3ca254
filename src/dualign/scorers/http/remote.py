"""A scorer behind an address: every distinct row is asked for once, kept, and never asked for again."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from dualign.errors import ScorerError
from dualign.hashing import canonical_digest
from dualign.records import FloatArray, Prompt, Turn
from dualign.scorers.http.address import check_url, check_variable, read_key
from dualign.scorers.http.cache import ScoreCache, default_folder
from dualign.scorers.http.client import Client
from dualign.scorers.http.faults import FinalFault, Stopped
from dualign.scorers.http.pacing import Clock, Pace, Retries
from dualign.scorers.http.transport import transport
from dualign.scorers.protocol import Direction
from dualign.scorers.spec import ScorerSpec, Setting, revision_of


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
        if self.key_from is not None:
            check_variable(self.key_from)
        return self


@dataclass(frozen=True, slots=True)
class Row:
    """One response to be scored."""

    id: str
    """Hash of the scorer's revision, the prompt with its history, and the response."""
    prompt: str
    history: tuple[Turn, ...]
    response: str


class Exchange(Protocol):
    """How one kind of remote scorer words a request and reads its answer."""

    @property
    def name(self) -> str:
        """What the scorer is called in reports."""

    @property
    def batch_size(self) -> int:
        """Rows of one request."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """All that determines the numbers."""

    def body(self, request_id: str, rows: Sequence[Row]) -> Mapping[str, Any]:
        """Return the JSON object to send."""

    def scores(self, answer: Any, rows: Sequence[Row]) -> dict[str, float]:
        """Return a finite score for each row id, and for nothing else.

        Raises:
            TransientFault: ``answer`` has another form than agreed.
        """


@dataclass(frozen=True, slots=True)
class RemoteScorer:
    """Asks for the rows that are not kept yet, several requests at once."""

    exchange: Exchange
    client: Client
    cache: ScoreCache
    direction: Direction
    concurrency: int

    @property
    def id(self) -> str:
        """Return the kind and what is asked."""
        return self.exchange.name

    @property
    def revision(self) -> str:
        """Return a hash of the address, the version and the kind's own settings; never of the key."""
        return revision_of(**self.exchange.facts)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a row has no score after all attempts; those that have one are kept.
            DataError: a kept score is damaged.
        """
        revision = self.revision
        rows = [_row(revision, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
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


def messages(turns: Iterable[Turn]) -> list[dict[str, str]]:
    """Return ``turns`` in the form that chat APIs share."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def remote_scorer(spec: RemoteSpec, setting: Setting, exchange: Exchange, *, kind: str, clock: Clock) -> RemoteScorer:
    """Return the scorer that speaks ``exchange`` with the address of ``spec``; nothing is sent yet.

    Raises:
        MissingError: the variable with the key is not set.
        ConfigError: the key cannot be sent.
    """
    client = Client(
        transport(spec.url, timeout=spec.timeout, monotonic=clock.monotonic),
        Retries(spec.attempts, spec.backoff, spec.max_wait),
        Pace(spec.requests_per_second, clock),
        clock,
        read_key(spec.key_from, kind),
    )
    folder = default_folder() if spec.cache is None else setting.folder / Path(spec.cache).expanduser()
    # One folder a revision: that of a scorer that is no longer used can be deleted by hand.
    cache = ScoreCache(folder / revision_of(**exchange.facts))
    return RemoteScorer(exchange, client, cache, setting.direction, spec.concurrency)
