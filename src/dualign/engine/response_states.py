"""Features of answers from the reference itself: its last states, averaged over the response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dualign.backends.protocol import Policy
from dualign.engine.adapters import activated
from dualign.engine.language_model import LanguageModel
from dualign.engine.layouts import Sequences, rows
from dualign.engine.pair_scorer import PairScorer
from dualign.engine.pair_store import encode_prompt, encode_response
from dualign.records import FloatArray, Group


def response_states(language_model: LanguageModel, groups: Sequence[Group], *, tokens_a_batch: int) -> list[FloatArray]:
    """Return for each group ``[response, width]``: the mean of the states that predict the response's tokens."""
    model = language_model
    encoded: list[Sequences] = [
        (encode_prompt(model, group.prompt), tuple(encode_response(model, answer)[0] for answer in group.responses))
        for group in groups
    ]
    found = []
    with activated(model, Policy("reference")), torch.no_grad():
        scorer = PairScorer(model)
        for part in _parts(encoded, tokens_a_batch):
            batch = rows(part, model.pad).to(model.device)
            states = scorer.by_token(batch)[1].double()
            sums = torch.zeros(batch.shape[0] * batch.shape[1], states.shape[1], dtype=states.dtype)
            counts = torch.zeros(len(sums), 1, dtype=states.dtype)
            slots = batch.slot.cpu()
            sums.index_add_(0, slots, states.cpu())
            counts.index_add_(0, slots, torch.ones(len(slots), 1, dtype=states.dtype))
            means = (sums / counts.clamp(min=1)).view(*batch.shape, -1).numpy()
            found += [np.array(row[: len(answers)]) for row, (_, answers) in zip(means, part, strict=True)]
    return found


def _parts(encoded: Sequence[Sequences], tokens_a_batch: int) -> list[list[Sequences]]:
    """Return batches in order, each of at most that many tokens if it can, padding counted."""
    parts: list[list[Sequences]] = []
    for item in encoded:
        trial = [*(parts[-1] if parts else []), item]
        widest = max(len(prompt) + max(map(len, answers)) for prompt, answers in trial)
        if parts and widest * sum(len(answers) for _, answers in trial) <= tokens_a_batch:
            parts[-1].append(item)
        else:
            parts.append([item])
    return parts
