"""How prompts and responses are laid out as rows of tokens; every layout gives the same log-probabilities.

Two things are common to all. The last token of a response is never an input, because it predicts nothing that is
counted. Padding stands on the right, where causal attention does not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Sequences = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""The tokens of a prompt, and of each of its responses."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows of tokens, and which positions predict which response token."""

    input_ids: Tensor
    """Shape ``[row, token]``."""
    position_ids: Tensor | None
    """Shape ``[row, token]``; none: they count from 0 in each row."""
    allowed: Tensor | None
    """Boolean ``[row, 1, token, token]``: which token (last axis) each token sees; none: causal."""
    predictor: Tensor
    """Shape ``[target]``: flat position ``row * width + token`` whose output predicts the target."""
    target: Tensor
    """Shape ``[target]``: the response tokens, EOS included."""
    step: Tensor
    """Shape ``[target]``: the target's place in its response, from 0."""
    slot: Tensor
    """Shape ``[target]``: the flat number ``group * K + response`` of the target's response."""
    shape: tuple[int, int]
    """(groups, K), K the largest number of responses of a group."""

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on ``device``."""
        return TokenBatch(
            self.input_ids.to(device),
            None if self.position_ids is None else self.position_ids.to(device),
            None if self.allowed is None else self.allowed.to(device),
            self.predictor.to(device),
            self.target.to(device),
            self.step.to(device),
            self.slot.to(device),
            self.shape,
        )


Layout = Callable[[Sequence[Sequences], int], TokenBatch]
"""(prompts with their responses, pad token) -> batch."""


def rows(batch: Sequence[Sequences], pad: int) -> TokenBatch:
    """Return one row a response, each with its prompt: what every causal model can read."""
    lines: list[tuple[int, ...]] = []
    predictor, slots = [], []
    widest = max(len(responses) for _, responses in batch)
    width = max(len(prompt) + len(response) - 1 for prompt, responses in batch for response in responses)
    for number, (prompt, responses) in enumerate(batch):
        for k, response in enumerate(responses):
            first = len(lines) * width + len(prompt) - 1
            predictor.append(torch.arange(first, first + len(response)))
            slots.append(number * widest + k)
            lines.append(prompt + response[:-1])
    return TokenBatch(
        _padded(lines, width, pad), None, None, torch.cat(predictor), *_targets(batch, slots), (len(batch), widest)
    )


def shared(batch: Sequence[Sequences], pad: int) -> TokenBatch:
    """Return one row a group: the prompt once, then its responses, which see the prompt and themselves alone.

    The positions of every response go on from the prompt's end, as if it stood there by itself.
    """
    lines: list[tuple[int, ...]] = []
    predictor, slots = [], []
    widest = max(len(responses) for _, responses in batch)
    width = max(len(p) + sum(len(r) - 1 for r in responses) for p, responses in batch)
    owner = torch.full((len(batch), width), -1)
    position = torch.zeros((len(batch), width), dtype=torch.long)
    for number, (prompt, responses) in enumerate(batch):
        end = len(prompt)
        owner[number, :end] = 0
        position[number, :end] = torch.arange(end)
        for k, response in enumerate(responses):
            stop = end + len(response) - 1
            owner[number, end:stop] = k + 1
            position[number, end:stop] = len(prompt) + torch.arange(stop - end)
            row = number * width
            predictor.append(torch.cat([torch.tensor([row + len(prompt) - 1]), torch.arange(row + end, row + stop)]))
            slots.append(number * widest + k)
            end = stop
        lines.append(prompt + tuple(token for response in responses for token in response[:-1]))
    return TokenBatch(
        _padded(lines, width, pad),
        position,
        _visible(owner),
        torch.cat(predictor),
        *_targets(batch, slots),
        (len(batch), widest),
    )


def _visible(owner: Tensor) -> Tensor:
    width = owner.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    same = owner[:, :, None] == owner[:, None, :]
    prompt = owner[:, None, :] == 0
    return ((same | prompt) & earlier)[:, None]


def _padded(lines: Sequence[tuple[int, ...]], width: int, pad: int) -> Tensor:
    return torch.tensor([line + (pad,) * (width - len(line)) for line in lines], dtype=torch.long)


def _targets(batch: Sequence[Sequences], slots: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    responses = [response for _, group in batch for response in group]
    lengths = torch.tensor([len(response) for response in responses])
    target = torch.tensor([token for response in responses for token in response], dtype=torch.long)
    step = torch.cat([torch.arange(len(response)) for response in responses])
    return target, step, torch.tensor(slots).repeat_interleave(lengths)


LAYOUTS: dict[str, Layout] = {"rows": rows, "shared": shared}
