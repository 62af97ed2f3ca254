"""Groups as tokens: what every multiplier, method and seed shares, because no label is in it.

Also the reference log-probabilities, worked out once a response and kept in a safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dualign.errors import DataError
from dualign.hashing import canonical_digest, digest
from dualign.models.adapters import activated
from dualign.models.language_model import LanguageModel, answer_text
from dualign.models.log_probs import PairScorer, rows
from dualign.models.templates import response_tokens
from dualign.protocols import Policy
from dualign.records import FloatArray, Group, Prompt, Response, named
from dualign.runs.store import write_bytes

Tokens = tuple[int, ...]
IntArray = NDArray[np.int64]
_CACHED = ("log_probs", "counts", "digests")
"""Tensors of a file of log-probabilities: all figures, how many each group has, and the hash of its tokens."""


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """One prompt with its responses as token ids; equal responses are held once."""

    prompt: Tokens
    responses: tuple[Tokens, ...]
    """The different responses, each with what closes it when it ended by itself."""
    index: IntArray
    """Shape ``[response]``: where each response of the group stands in ``responses``."""
    pairs: IntArray
    """Shape ``[pair, 2]``: the group's pairs of different responses, as numbers of its responses."""
    reward: FloatArray
    costs: FloatArray
    weight: float
    columns: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Return the tokens of the prompt and of all different responses."""
        return len(self.prompt) + sum(len(response) for response in self.responses)


def group_digest(group: StoredGroup) -> str:
    """Return the hash of one group."""
    columns = {name: values.tolist() for name, values in group.columns.items()}
    scores = [group.reward.tolist(), group.costs.tolist(), group.weight, columns]
    return canonical_digest([group.prompt, group.responses, group.index.tolist(), [repr(s) for s in scores]])


def encode_prompt(language_model: LanguageModel, prompt: Prompt) -> Tokens:
    """Return the prompt's tokens; one that is too long loses its oldest tokens, never the generation prompt.

    Raises:
        DataError: the template gives no token, so that no position predicts the first response token.
    """
    tokens = tuple(language_model.template(prompt))
    if not tokens:
        raise DataError(f"{named(prompt)}: the template gives no token; it must give at least one")
    return tokens[-language_model.max_prompt_tokens :]


def encode_response(language_model: LanguageModel, response: Response) -> Tokens:
    """Return the response's tokens.

    A sampled response keeps its own tokens. A text is tokenised on its own, as text, so that the border to the prompt
    never moves, and closed as the template does. One that is too long is cut, and nothing closes it.

    Raises:
        DataError: the response has no token.
    """
    tokens = response.tokens or response_tokens(language_model, response.text, end=response.finished)
    if not tokens:
        raise DataError("a response has no token: it is empty and nothing closes it")
    return tuple(tokens[: language_model.max_response_tokens])


def as_trained(language_model: LanguageModel, text: str, *, room: int | None = None) -> Response:
    """Return an answer that somebody wrote as it is trained on: its tokens, and the text that these tokens say.

    One of more than ``max_response_tokens`` (or ``room``, if that is less) tokens is cut, and nothing closes it: it did
    not end there. Whoever scores the answer reads what is left of it.
    """
    most = language_model.max_response_tokens
    limit = most if room is None else max(0, min(most, room))
    said = response_tokens(language_model, text, end=False)
    whole = (*said, *response_tokens(language_model, ""))
    finished = len(whole) <= limit
    kept = whole if finished else said[:limit]
    return Response(answer_text(language_model, kept)[0], kept, finished=finished)


def stored_groups(language_model: LanguageModel, groups: Sequence[Group]) -> list[StoredGroup]:
    """Return the groups as tokens.

    Raises:
        DataError: no groups, a response without tokens, or a token that the grammar forbids.
    """
    if not groups:
        raise DataError("groups: none were given; a fit needs at least one prompt with two responses")
    return [_stored(language_model, group) for group in groups]


def _stored(language_model: LanguageModel, group: Group) -> StoredGroup:
    prompt = encode_prompt(language_model, group.prompt)
    responses = [encode_response(language_model, response) for response in group.responses]
    different = tuple(dict.fromkeys(responses))
    if (grammar := language_model.grammar) is not None:
        for position, token in (place for tokens in different for place in enumerate(tokens)):
            if not bool(grammar[min(position, len(grammar) - 1), token]):
                raise DataError(f"{named(group.prompt)}: token {token} at position {position} is outside the grammar")
    index = np.array([different.index(tokens) for tokens in responses], dtype=np.int64)
    pairs = [(i, j) for i, j in combinations(range(len(responses)), 2) if index[i] != index[j]]
    return StoredGroup(
        prompt,
        different,
        index,
        np.array(pairs, dtype=np.int64).reshape(-1, 2),
        np.asarray(group.reward, dtype=np.float64),
        np.asarray(group.costs, dtype=np.float64),
        float(group.weight),
        {name: np.asarray(values, dtype=np.float64) for name, values in group.columns.items()},
    )


def cached_log_probs(
    path: Path | None, groups: Sequence[StoredGroup], compute: Callable[[Sequence[StoredGroup]], list[FloatArray]]
) -> list[FloatArray]:
    """Return for each group the ``[response]`` log-probabilities; only groups that ``path`` lacks are computed.

    The caller names ``path`` by all that the figures depend on besides the tokens. A damaged file is made anew.
    """
    keys = [_token_key(group) for group in groups]
    known = _read_cache(path) if path is not None else {}
    missing = [group for group, key in zip(groups, keys, strict=True) if key not in known]
    if missing:
        fresh = compute(missing)
        known |= {_token_key(group): values for group, values in zip(missing, fresh, strict=True)}
        if path is not None:
            _write_cache(path, known)
    return [known[key][group.index] for group, key in zip(groups, keys, strict=True)]


def _token_key(group: StoredGroup) -> str:
    return digest(repr((group.prompt, group.responses)))


def _write_cache(path: Path, known: Mapping[str, FloatArray]) -> None:
    from safetensors.numpy import save

    keys = sorted(known)
    tensors = {
        "log_probs": np.concatenate([known[key] for key in keys]),
        "counts": np.array([len(known[key]) for key in keys], dtype=np.int64),
        "digests": np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(-1, 32).copy(),
    }
    check = digest(*(tensors[name].tobytes() for name in _CACHED))
    write_bytes(path, save(tensors, metadata={"check": check}))


def _read_cache(path: Path) -> dict[str, FloatArray]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="numpy") as file:
            check = (file.metadata() or {}).get("check")
            values, counts, digests = (file.get_tensor(name) for name in _CACHED)
    except SafetensorError:
        return {}
    if digest(*(part.tobytes() for part in (values, counts, digests))) != check:
        return {}
    parts = np.split(values, np.cumsum(counts)[:-1])
    return {bytes(key).hex(): part for key, part in zip(digests, parts, strict=True)}


def response_states(language_model: LanguageModel, groups: Sequence[Group], *, tokens_a_batch: int) -> list[FloatArray]:
    """Return for each group ``[response, width]``: the mean of the states that predict the response's tokens.

    Only answers of one length, prompt included, are read together: no padding decides how a state is rounded.
    """
    model = language_model
    places = [(number, k) for number, group in enumerate(groups) for k in range(len(group.responses))]
    prompts = [encode_prompt(model, group.prompt) for group in groups]
    answers = {(i, k): encode_response(model, groups[i].responses[k]) for i, k in places}
    lengths = [len(prompts[i]) + len(answers[i, k]) for i, k in places]
    found: list[list[FloatArray]] = [[np.empty(0)] * len(group.responses) for group in groups]
    with activated(model, Policy("reference")), torch.no_grad():
        scorer = PairScorer(model)
        for part in _parts(lengths, tokens_a_batch):
            chosen = [places[item] for item in part]
            batch = rows([(prompts[i], (answers[i, k],)) for i, k in chosen], model.pad).to(model.device)
            states = scorer(batch).states.double().cpu()
            for (i, k), own in zip(chosen, torch.split(states, [len(answers[place]) for place in chosen]), strict=True):
                found[i][k] = own.mean(0).numpy()
    return [np.array(row) for row in found]


def _parts(lengths: Sequence[int], tokens_a_batch: int) -> list[list[int]]:
    """Return batches of numbers of one length each, of at most that many tokens if it can."""
    parts = []
    for length, alike in groupby(sorted(range(len(lengths)), key=lengths.__getitem__), lengths.__getitem__):
        items, size = list(alike), max(1, tokens_a_batch // length)
        parts += [items[first : first + size] for first in range(0, len(items), size)]
    return parts
