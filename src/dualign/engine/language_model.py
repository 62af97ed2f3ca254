"""A causal language model with its tokenizer, template and temperature: what the engine and the samplers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dualign.records import Prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Wording:
    """How prompts are put into words: the template and what it is given."""

    template: str | None = None
    """``chat``, ``plain`` or ``beaver``; none: the tokenizer's chat template, ``plain`` where it has none."""
    system_prompt: str | None = None
    """None: the template's own; empty: an empty system turn."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the chat template, such as ``enable_thinking: false``."""
    date: str | None = None
    """The day (``2026-01-31``) that a chat template reads from the clock; none: the day on which the
    model is loaded, or the template reads no clock."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What rendering a few conversations showed of a template: where a turn ends, and what it has no place for."""

    stops: frozenset[int]
    """Token ids at which an answer ends: the tokenizer's EOS, the model's own, the template's terminator."""
    closing: tuple[int, ...]
    """What the template writes behind an answer, up to the token that ends it."""
    terminator: str = ""
    """Text at which an answer ends where the template ends turns in plain text; empty: tokens alone end one."""
    anchor: str = ""
    """Text that an answer is tokenised behind, and cut from; empty: an answer alone gives the same tokens."""
    lead: str = ""
    """White space that stands between the generation prompt and an answer, and is the answer's first token."""
    opens_reasoning: bool = False
    """Whether the generation prompt opens a ``<think>`` block, which answers then begin inside of."""
    reads_clock: bool = False
    no_system: str = ""
    """Why a system turn has no place; empty: it has."""
    no_history: str = ""
    """Why turns before the last have no place; empty: they have."""
    notes: tuple[str, ...] = ()
    """Sentences that a user should read."""


@dataclass(frozen=True)
class LanguageModel:
    """One base model in memory; adapters come and go on it by name.

    The policy is softmax(logits / temperature), everywhere. ``grammar`` restricts what may be generated.
    """

    model: Any
    """A ``PreTrainedModel`` without adapters, in evaluation mode."""
    tokenizer: Any
    template: Callable[[Prompt], list[int]]
    """Prompt -> token ids, generation prompt included, exactly one BOS where the model wants one."""
    eos: int
    """The tokenizer's EOS; what ends an answer are ``stops``, what closes one that is given is ``closing``."""
    pad: int
    temperature: float = 1.0
    max_prompt_tokens: int = 512
    max_response_tokens: int = 128
    revision: str = ""
    """Hash of the weights' identity: part of every cache key."""
    grammar: Tensor | None = None
    """Boolean ``[position, vocabulary]``: which tokens may stand at the response's position; none: all may.
    Log-probabilities are normalised over the allowed tokens. Positions past the last row use the last row."""
    notes: tuple[str, ...] = ()
    """What is to be said about how it was loaded."""
    wording: Wording = Wording()
    """What ``template`` was made of."""
    turns: Turns | None = None
    """What the template was found to write; none: turns end with ``eos`` alone."""

    @property
    def stops(self) -> frozenset[int]:
        """Return the token ids at which an answer ends."""
        return frozenset((self.eos,)) if self.turns is None else self.turns.stops

    @property
    def closing(self) -> tuple[int, ...]:
        """Return the tokens that close an answer which somebody wrote."""
        return (self.eos,) if self.turns is None else self.turns.closing

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device
