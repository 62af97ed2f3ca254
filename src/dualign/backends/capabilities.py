"""What only some backends can do, each a protocol of its own; a method that needs one asks with ``isinstance``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from dualign.backends.protocol import Policy
from dualign.records import FloatArray, Group


@runtime_checkable
class Informs(Protocol):
    """A backend that can tell what a prompt adds to the probability of a response."""

    def mutual_information(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response]``: (log pi(y|x) - log pi(y)) / |y|, in nats a token.

        pi(y) is a model's probability of the response after an empty prompt in its template; of a table, where a
        response is one token, the mean over the prompts that can get a response of the same text.
        """
