"""Frozen rows that pass between the parts and go to disk. No torch.

Sign rule of the whole toolkit: cost up is bad, ``violation = measured - limit``, positive is broken.
Vectors over constraints follow the order of the ``constraints`` they were made for.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dualign.errors import shown
from dualign.hashing import digest

FloatArray = NDArray[np.float64]
WHOLE = re.compile(r"\A(-?[0-9]+)\.0+\Z")
"""A whole number that is written with decimals."""


def normalise_prompt(text: str) -> str:
    """Return ``text`` in NFKC, lower case, white space folded: what splits and prompt ids hash."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def prompt_id(text: str) -> str:
    """Return the 16 hexadecimal digits that stand for a prompt (SHA-256 of the normalised text)."""
    return digest(normalise_prompt(text))[:16]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and the columns that slices (``where``) are named by."""

    text: str
    """What the user says last."""
    columns: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    history: tuple[Turn, ...] = ()
    """The turns before ``text``, a system turn first if there is one; user and assistant alternate, and the last is
    the assistant's."""
    cluster: str = ""
    """Name of the unit of independence: prompts of one name (near-copies, say) stand and fall together. Its own id
    where none is given."""
    place: str = field(default="", compare=False, repr=False)
    """Where it was read, such as ``pairs.jsonl: line 22``: for messages alone."""

    def __post_init__(self) -> None:
        if not self.id:
            said = "".join(f"<{turn.role}> {turn.text}\n" for turn in self.history)
            object.__setattr__(self, "id", prompt_id(said + self.text))
        if not self.cluster:
            object.__setattr__(self, "cluster", self.id)


def in_slice(columns: Mapping[str, str], where: Mapping[str, str]) -> bool:
    """Return whether columns have every value of ``where``; a flag or whole number is the same however it is written.

    One file's ``true`` is ``True`` in a CSV of pandas, and its ``1`` is ``1.0`` where other rows lack the column.
    """
    return all(name in columns and _spelt(columns[name]) == _spelt(value) for name, value in where.items())


def _spelt(value: str) -> str:
    lower = value.lower()
    return lower if lower in ("true", "false") else WHOLE.sub(r"\1", value)


def named(prompt: Prompt) -> str:
    """Return what a message calls a prompt: where it was read and its first words, which can be searched for."""
    return f"{prompt.place} ({shown(prompt.text)})" if prompt.place else f"prompt {shown(prompt.text)}"


@dataclass(frozen=True, slots=True)
class Response:
    """One response: its text, and where a model made it its tokens (EOS included when ``finished``)."""

    text: str
    tokens: tuple[int, ...] = ()
    log_prob: float = math.nan
    """Sum over the response's tokens, under the policy that was sampled, at its temperature, in nats.

    As the sampler computed it, for readers of files alone: losses and KL read the answers anew, all in one way.
    """
    finished: bool = True
    """Whether the response ended by itself; one cut at the length limit has no EOS."""


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt with K >= 2 scored responses; a preference pair is K = 2."""

    prompt: Prompt
    responses: tuple[Response, ...]
    reward: FloatArray
    """Shape ``[response]``, raw units, higher is better."""
    costs: FloatArray
    """Shape ``[response, constraint]``, raw units, higher is worse."""
    weight: float = 1.0
    """Weight of the prompt among the groups."""
    columns: Mapping[str, FloatArray] = field(default_factory=dict)
    """Extra columns a response, each of shape ``[response]``, for the objectives that ask for them."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A requirement: ``functional(cost) <= limit``, on the prompts of a slice."""

    name: str
    limit: float
    scorer: str = "cost"
    functional: str = "mean"
    """``mean``, ``rate``, ``cvar:ALPHA`` or ``relative`` (see ``maths.functionals``)."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Column values that name the slice; the population is then the prompts of the slice."""
    cap: float | None = None
    """Largest cost that the certificate counts; needed to certify, because no finite bound exists without."""
    floor: float | None = None
    """Lowest cost that the certificate counts; none: as it is."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured for one policy on one set of prompts (errors are standard errors, clustered by prompt)."""

    reward: float
    reward_error: float
    costs: FloatArray
    """Shape ``[constraint]``: the functional of each cost."""
    cost_errors: FloatArray
    cost_spreads: FloatArray
    """Shape ``[constraint]``: standard deviation of the prompt means, what the margin is made of."""
    kl: float
    """E KL(policy || reference) in nats, at the sampling temperature."""
    kl_error: float
    n_prompts: int
    slope: FloatArray | None = None
    """Shape ``[constraint, constraint]``: d violation / d multiplier of a Gibbs policy, -E Cov(c_i, c_j)/beta."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further figures to show: slope of fit, mean length, share finished."""


@dataclass(frozen=True, slots=True)
class Iterate:
    """One round of a method: the multipliers, what they led to, and the policy."""

    round: int
    multipliers: FloatArray
    evaluation: Evaluation
    policy: Any


@dataclass(frozen=True, slots=True)
class Certificate:
    """The verdict on one ladder of policies; ``figures`` is the JSON object of ``dualign certify --json``."""

    verdict: str
    """CERTIFIED, NOT CERTIFIED, NO CERTIFIED POLICY or INVALID."""
    selected: str | None
    figures: Mapping[str, Any]

    @property
    def statement(self) -> str:
        """Return what may be said now, in words."""
        return str(self.figures["statement"])

    @property
    def upper_bounds(self) -> dict[str, float]:
        """Return the upper bound under each limit: of the selected policy, or of the first where none is certified."""
        return {name: float(row["upper_bound"]) for name, row in self.figures["constraints"].items()}
