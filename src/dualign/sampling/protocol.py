"""What the pipeline asks of a sampler, and the settings that define the policy that is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dualign.backends.protocol import Policy
from dualign.records import Prompt, Response


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding settings; they are part of the certificate's claim."""

    temperature: float = 1.0
    """The policy *is* softmax(logits / temperature): sampling, log-probabilities, loss and KL all use it."""
    max_new_tokens: int = 128
    top_k: int = 0
    """0 = off: unbiased draws."""
    top_p: float = 1.0
    batch_size: int = 32
    """Sequences decoded together; changes speed, and samples only through rounding."""


class Sampler(Protocol):
    """Draws responses of a policy."""

    def generate(
        self, policy: Policy, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int, stage: str
    ) -> list[list[Response]]:
        """Return ``n`` responses a prompt, with tokens and log-probabilities.

        Each draw's randomness is keyed by (seed, stage, prompt id, sample index): the batch and the order of
        the prompts change no draw, but through rounding.
        """
