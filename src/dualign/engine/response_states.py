"""Features of answers from the reference itself: its last states, averaged over the response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dualign.backends.protocol import Policy
from dualign.engine.adapters import activated
from dualign.engine.language_model import LanguageModel
from dualign.engine.layouts import rows
from dualign.engine.pair_scorer import PairScorer
from dualign.engine.pair_store import encode_prompt, encode_response
from dualign.records import FloatArray, Group


def response_states(language_model: LanguageModel, groups: Sequence[Group], *, tokens_a_batch: int) -> list[FloatArray]:
    """Return for each group ``[response, width]``: the mean of the states that predict the response's tokens.

    Only answers of one length, prompt included, are read together: no padding decides how a state is rounded.
    """
    model = language_model
    places = [(number, k) for number, group in enumerate(groups) for k in range(len(group.responses))]
    prompts = [encode_prompt(model, group.prompt) for group in groups]
    answers = {(i, k): encode_response(model, groups[i].responses[k])[0] for i, k in places}
    lengths = [len(prompts[i]) + len(answers[i, k]) for i, k in places]
    found: list[list[FloatArray]] = [[np.empty(0)] * len(group.responses) for group in groups]
    with activated(model, Policy("reference")), torch.no_grad():
        scorer = PairScorer(model)
        for part in _parts(lengths, tokens_a_batch):
            chosen = [places[item] for item in part]
            batch = rows([(prompts[i], (answers[i, k],)) for i, k in chosen], model.pad).to(model.device)
            states = scorer.by_token(batch)[1].double().cpu()
            for (i, k), own in zip(chosen, torch.split(states, [len(answers[place]) for place in chosen]), strict=True):
                found[i][k] = own.mean(0).numpy()
    return [np.array(row) for row in found]


def _parts(lengths: Sequence[int], tokens_a_batch: int) -> list[list[int]]:
    """Return batches of numbers of one length each, of at most that many tokens if it can."""
    alike: dict[int, list[int]] = {}
    for item, length in enumerate(lengths):
        alike.setdefault(length, []).append(item)
    parts = []
    for length, items in sorted(alike.items()):
        size = max(1, tokens_a_batch // length)
        parts += [items[first : first + size] for first in range(0, len(items), size)]
    return parts
