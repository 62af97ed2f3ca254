"""Length of a response in words, characters or tokens."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dualign.errors import ConfigError
from dualign.records import FloatArray, Prompt
from dualign.scorers.protocol import Direction
from dualign.scorers.spec import ScorerSpec, Setting, revision_of

Unit = Literal["words", "characters", "tokens"]


class LengthSpec(ScorerSpec):
    """Keys of ``kind: length``."""

    unit: Unit = "words"
    """``tokens`` counts without special tokens, by ``tokenizer``, else by the policy's own."""
    tokenizer: str | None = None
    """Folder or id of a Hugging Face tokenizer; only with ``unit: tokens``."""
    divisor: float = Field(default=1.0, gt=0)
    """The score is length / divisor; 10 makes limits of tens of words readable."""


@dataclass(frozen=True, slots=True)
class LengthScorer:
    """Counts."""

    unit: Unit
    direction: Direction
    tokenizer: Any = None
    """With ``tokens``: a Hugging Face tokenizer."""
    divisor: float = 1.0

    @property
    def id(self) -> str:
        """Return the kind and the unit."""
        return f"length({self.unit})" if self.divisor == 1 else f"length({self.unit}/{self.divisor:g})"

    @property
    def revision(self) -> str:
        """Return a hash of the unit, the divisor and the tokenizer."""
        tokenizer = tokenizer_revision(self.tokenizer) if self.unit == "tokens" else ""
        return revision_of(kind="length", unit=self.unit, divisor=self.divisor, tokenizer=tokenizer)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:  # noqa: ARG002
        """Return shape ``[response]`` lengths / divisor; an empty response has length 0."""
        return np.array([self._count(response) for response in responses], dtype=np.float64) / self.divisor

    def _count(self, response: str) -> int:
        if self.unit == "words":
            return len(response.split())
        if self.unit == "characters":
            return len(response)
        return len(self.tokenizer(response, add_special_tokens=False)["input_ids"])


def tokenizer_revision(tokenizer: Any) -> str:
    """Return a hash of a tokenizer: of the whole fast one, else of its class and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
    else:
        text = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(spec: LengthSpec, setting: Setting) -> LengthScorer:
    """Return the scorer that ``spec`` describes.

    Raises:
        ConfigError: tokens are asked for and there is no tokenizer, or the reverse.
    """
    if spec.unit != "tokens":
        if spec.tokenizer is not None:
            raise ConfigError(f"scorer length: a tokenizer is given, unit is {spec.unit!r}; 'tokens' uses one")
        return LengthScorer(spec.unit, setting.direction, divisor=spec.divisor)
    if spec.tokenizer is not None:
        from dualign.scorers.encoding import load_tokenizer

        tokenizer = load_tokenizer(spec.tokenizer, setting.folder)
    elif setting.tokenizer is not None:
        tokenizer = setting.tokenizer
    else:
        raise ConfigError("scorer length: unit 'tokens' needs a tokenizer; give its folder as 'tokenizer'")
    return LengthScorer("tokens", setting.direction, tokenizer, spec.divisor)
