"""The check that every scorer runs behind: one finite number a response, or an error that names the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualign.errors import ScorerError
from dualign.records import FloatArray, Prompt, named
from dualign.scorers.protocol import Direction, Scorer, words_read


@dataclass(frozen=True, slots=True)
class CheckedScorer:
    """A scorer whose answers are verified before anybody sees them."""

    scorer: Scorer

    @property
    def id(self) -> str:
        """Return the inner scorer's id."""
        return self.scorer.id

    @property
    def revision(self) -> str:
        """Return the inner scorer's revision."""
        return self.scorer.revision

    @property
    def direction(self) -> Direction:
        """Return the inner scorer's direction."""
        return self.scorer.direction

    @property
    def words_read(self) -> int | None:
        """Return how many words of an answer are read at the most; none: all."""
        return words_read(self.scorer)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` finite scores.

        Raises:
            ScorerError: the answer has another shape, holds no numbers, or one of them is not finite.
            ValueError: ``prompts`` and ``responses`` are not parallel.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses; they must be parallel")
        if not responses:
            return np.zeros(0)
        answer = self.scorer(prompts, responses)
        try:
            scores = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ScorerError(f"scorer {self.id}: did not return numbers ({error})") from error
        if scores.shape != (len(responses),):
            raise ScorerError(
                f"scorer {self.id}: returned shape {list(scores.shape)} for {len(responses)} responses; "
                f"[{len(responses)}] is needed"
            )
        wrong = np.flatnonzero(~np.isfinite(scores))
        if wrong.size:
            index = int(wrong[0])
            raise ScorerError(
                f"scorer {self.id}: {scores[index]} for prompt {index} ({named(prompts[index])}); "
                f"{wrong.size} of {len(responses)} scores are not finite"
            )
        return scores


def checked(scorer: Scorer) -> CheckedScorer:
    """Return ``scorer`` behind the check; one that is checked already is returned as it is."""
    return scorer if isinstance(scorer, CheckedScorer) else CheckedScorer(scorer)
