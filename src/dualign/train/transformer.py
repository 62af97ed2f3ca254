"""The backend of language models: fits adapters or full weights, samples them, reads their log-probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualign.errors import NumericalError, UsageError
from dualign.hashing import canonical_digest
from dualign.models.adapters import activated, fingerprint, merged
from dualign.models.language_model import LanguageModel
from dualign.models.log_probs import LAYOUTS, PairScorer, choose_layout
from dualign.models.pair_store import StoredGroup, cached_log_probs, response_states, stored_groups
from dualign.protocols import FitReport, Objective, OnPolicyTraining, Policy, Sampler, Sampling, Score
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.train.on_policy import Stage, train_on_policy
from dualign.train.pairs import FitInputs, fit
from dualign.train.settings import TrainingSettings
from dualign.train.sft import Example

TOKENS_A_BATCH = 4096
"""Tokens of one forward pass where no gradient is wanted."""


@dataclass(eq=False)
class TransformerBackend:
    """Holds one base model; a policy is a folder of weights for it, and the reference is the base itself.

    Raises:
        UsageError: the sampler's temperature is not the model's: they would be two different policies.
    """

    language_model: LanguageModel
    _: KW_ONLY
    settings: TrainingSettings
    sampler: Sampler
    sampling: Sampling
    folder: Path
    """Gets a sub-folder for every policy."""
    cache: Path | None = None
    """Gets the log-probabilities; none: ``folder / "reference"``."""
    pretraining: Sequence[Example] = ()
    """What on-policy methods may imitate."""
    notes: list[str] = field(default_factory=list, init=False)
    """Sentences for the user: a layout that fell back, a checkpoint that was ignored."""
    _layout: str | None = field(default=None, init=False)
    _tried: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.sampling.temperature != self.language_model.temperature:
            raise UsageError(
                f"sampling.temperature: {self.sampling.temperature} was given, but the policy is defined at "
                f"{self.language_model.temperature}; they must be equal"
            )

    def fit(
        self, groups: Sequence[Group], *, objective: Objective, reference: Policy, start: Policy | None, seed: int,
        name: str,
    ) -> Policy:  # fmt: skip
        """Return the policy that minimises ``objective`` on ``groups``; its weights lie in ``folder / name``.

        Without ``start`` it begins at the reference: by a fresh adapter where that is the base model.

        Raises:
            NumericalError: a loss or gradient is not finite; nothing of the step is applied.
            DataError: no group has two different responses.
        """
        stored = stored_groups(self.language_model, groups)
        known = self._log_probs(reference, stored)
        kept = [i for i, group in enumerate(stored) if len(group.pairs)]
        begin, layout = reference if start is None else start, self.layout(stored)
        inputs = FitInputs([stored[i] for i in kept], [known[i] for i in kept], objective, begin, seed, layout)
        target = self.folder / name
        report = fit(self.language_model, inputs, settings=self.settings, folder=target, notes=self.notes)
        return Policy(name, target, report)

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        """Return ``n`` responses for each prompt, draws of the policy at its temperature.

        Every policy gets the same random numbers for the same seed, so that differences are paired.
        """
        return self.sampler.generate(policy, prompts, n, sampling=self.sampling, seed=seed, stage="sample")

    def log_probs(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group the ``[response]`` sums of log-probabilities, EOS included, in nats.

        Raises:
            NumericalError: one is not finite.
        """
        return self._log_probs(policy, stored_groups(self.language_model, groups))

    def log_ratios(self, policy: Policy, reference: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response]``: log pi(y|x) - log pi_ref(y|x), EOS included, in nats.

        Both are read in the very same batches and none is taken from the cache: in bfloat16 a log-probability
        depends on what else is in its batch, by up to some tenths of a nat.

        Raises:
            NumericalError: a log-probability is not finite.
        """
        stored = stored_groups(self.language_model, groups)
        layout = self.layout(stored)
        own, known = (unique_log_probs(self.language_model, who, stored, layout=layout) for who in (policy, reference))
        return [(one - other)[group.index] for one, other, group in zip(own, known, stored, strict=True)]

    def mutual_information(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response]``: (log pi(y|x) - log pi(y)) / |y|, in nats a token, EOS included.

        pi(y) is the probability of the response after an empty prompt in the template.

        Raises:
            DataError: the template of an empty prompt has no token.
            NumericalError: a log-probability is not finite.
        """
        bare = [replace(group, prompt=Prompt("", id=group.prompt.id)) for group in groups]
        stored, without = (stored_groups(self.language_model, made) for made in (groups, bare))
        given, alone = self._log_probs(policy, stored), self._log_probs(policy, without)
        lengths = [np.array([len(row.responses[i]) for i in row.index]) for row in stored]
        return [(one - other) / length for one, other, length in zip(given, alone, lengths, strict=True)]

    def train_on_policy(
        self, policy: Policy, groups: Sequence[Group], *, training: OnPolicyTraining, score: Score, reference: Policy,
        seed: int, name: str,
    ) -> Policy:  # fmt: skip
        """Return ``policy`` after on-policy training on the prompts of ``groups``; it lies in ``folder / name``.

        A prompt that several groups share (one a pair) counts once.

        Raises:
            NumericalError: a loss or gradient is not finite; nothing of the step is applied.
        """
        if training.settings.get("ptx", 0) > 0 and not self.pretraining:
            raise UsageError("option ptx: imitates the answers of policy.warm_start, and there is none; leave it out")

        stage = Stage(
            self.language_model, self.sampler, self.sampling, self.settings, score, reference, self.pretraining
        )
        target = self.folder / name
        prompts: dict[str, Prompt] = {}
        for group in groups:
            prompts.setdefault(group.prompt.id, group.prompt)
        report = train_on_policy(stage, policy, list(prompts.values()), training, seed=seed, folder=target)
        return Policy(name, target, report)

    def merge(self, first: Policy, second: Policy, *, share: float, name: str) -> Policy:
        """Return ``(1 - share) first + share second`` in weights, which is not the merge of log-probabilities.

        Raises:
            UsageError: one is an adapter and the other is not.
        """
        target = self.folder / name
        merged(first, second, share=share, folder=target)
        return Policy(name, target, FitReport(0, float("nan"), float("nan"), 0.0))

    def states(self, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response, width]``: the reference's last states before the response's tokens."""
        return response_states(self.language_model, groups, tokens_a_batch=TOKENS_A_BATCH)

    def layout(self, groups: Sequence[StoredGroup]) -> str:
        """Return the layout in use; ``shared`` is tried again where a row is longer than those it was tried on.

        Below the width of its window, a model with sliding attention is like any other.
        """
        longest = max(groups, key=longest_row)
        if self._layout is None or (self._layout == "shared" and longest_row(longest) > self._tried):
            self._tried = longest_row(longest)
            probe = [(longest.prompt, longest.responses)]
            with activated(self.language_model, Policy("reference")):
                scorer = PairScorer(self.language_model)
                self._layout, note = choose_layout(scorer, probe, self.language_model.pad, self.settings.layout)
            self.notes.extend([note] if note else [])
        return self._layout

    def _log_probs(self, policy: Policy, groups: Sequence[StoredGroup]) -> list[FloatArray]:
        model = self.language_model
        layout = self.layout(groups)
        grammar = model.grammar
        masked = None if grammar is None else hashlib.sha256(grammar.cpu().numpy().tobytes()).hexdigest()
        reading = [
            str(model.model.dtype),
            repr(model.temperature),
            [model.max_prompt_tokens, model.max_response_tokens],
        ]
        key = canonical_digest([model.revision, fingerprint(policy), *reading, masked, layout])
        # Without a revision two models could share a key.
        folder = self.folder / "reference" if self.cache is None else self.cache
        path = folder / f"{key[:32]}.safetensors" if model.revision else None

        def compute(missing: Sequence[StoredGroup]) -> list[FloatArray]:
            return unique_log_probs(model, policy, missing, layout=layout)

        return cached_log_probs(path, groups, compute)


def longest_row(group: StoredGroup) -> int:
    """Return the tokens of the prompt and its longest response."""
    return len(group.prompt) + max(map(len, group.responses))


def unique_log_probs(
    language_model: LanguageModel, policy: Policy, groups: Sequence[StoredGroup], *, layout: str
) -> list[FloatArray]:
    """Return for each group the log-probabilities of its different responses, in nats.

    Raises:
        NumericalError: one is not finite.
    """
    found: list[Any] = [None] * len(groups)
    with activated(language_model, policy), torch.no_grad():
        scorer = PairScorer(language_model)
        for part in _by_length(groups):
            batch = LAYOUTS[layout]([(groups[i].prompt, groups[i].responses) for i in part], language_model.pad)
            values = scorer(batch.to(language_model.device)).responses.double().cpu().numpy()
            if not np.isfinite(values).all():
                raise NumericalError(f"policy '{policy.name}': a log-probability is not finite")
            for i, row in zip(part, values, strict=True):
                found[i] = row[: len(groups[i].responses)]
    return found


def _by_length(groups: Sequence[StoredGroup]) -> list[list[int]]:
    """Return batches of group numbers, like lengths together, each of at most ``TOKENS_A_BATCH`` tokens if it can."""
    batches: list[list[int]] = []
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].length):
        widest = groups[batches[-1][0]].length if batches else 0
        if batches and widest * (len(batches[-1]) + 1) <= TOKENS_A_BATCH:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
