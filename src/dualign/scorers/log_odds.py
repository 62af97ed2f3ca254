"""A cost with a zero of its own from a probability of harm: log-odds of some yes/no labels that are drawn from it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from dualign.errors import ScorerError
from dualign.maths.log_odds import log_odds
from dualign.records import FloatArray, Prompt
from dualign.scorers.checked import checked
from dualign.scorers.protocol import Direction, Scorer, words_read
from dualign.scorers.spec import ScorerSpec, Setting, revision_of


class LogOddsSpec(ScorerSpec):
    """Keys of ``kind: log-odds``."""

    scorer: dict[str, Any]
    """``kind`` and its own keys: a probability of harm, in [0, 1]."""
    labels: int = Field(default=16, ge=1)
    """Yes/no labels a response."""
    seed: int = 0
    """Of the labels; the same response to the same prompt gets the same labels."""


@dataclass(frozen=True, slots=True)
class LogOdds:
    """log((yes + 1/2) / (labels - yes + 1/2)) of labels that say yes with the inner scorer's probability."""

    inner: Scorer
    labels: int
    seed: int
    direction: Direction

    @property
    def id(self) -> str:
        """Return what is labelled, and how often."""
        return f"log-odds({self.inner.id}, {self.labels} labels)"

    @property
    def revision(self) -> str:
        """Return a hash of the inner scorer's revision, the number of labels and the seed."""
        return revision_of(kind="log-odds", inner=self.inner.revision, labels=self.labels, seed=self.seed)

    @property
    def words_read(self) -> int | None:
        """Return how many words of an answer are read at the most; none: all."""
        return words_read(self.inner)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]``: 0 where half of the labels say yes.

        Raises:
            ScorerError: the inner scorer failed, or gave a number that is no probability.
        """
        chances = checked(self.inner)(prompts, responses)
        wrong = np.flatnonzero((chances < 0) | (chances > 1))
        if wrong.size:
            raise ScorerError(
                f"scorer {self.id}: response {wrong[0]} got {chances[wrong[0]]:g} from {self.inner.id}; "
                "a probability from 0 to 1 is needed"
            )
        yes = [
            self._generator(prompt, text).binomial(self.labels, chance)
            for prompt, text, chance in zip(prompts, responses, chances, strict=True)
        ]
        return log_odds(np.array(yes, dtype=np.float64), labels=self.labels)

    def _generator(self, prompt: Prompt, response: str) -> np.random.Generator:
        key = hashlib.sha256(f"{self.seed}\0{prompt.id}\0{response}".encode("utf-8", "surrogatepass")).digest()
        return np.random.default_rng(np.frombuffer(key, dtype=np.uint32))


def build(spec: LogOddsSpec, setting: Setting) -> LogOdds:
    """Return the scorer that ``spec`` describes."""
    return LogOdds(setting.make(spec.scorer), spec.labels, spec.seed, setting.direction)
