"""Supervised stages before the job: a model that both refuses and complies, so that its own samples can teach."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dualign.config import Mix, WarmStart
from dualign.data.prompts import Demonstration
from dualign.errors import ConfigError
from dualign.hashing import canonical_digest
from dualign.job.inputs import Inputs
from dualign.job.measurement import matches
from dualign.job.phases import OpenRun, Tell, folder_made
from dualign.job.reading import check_given, prompt_tokens, sampling_of
from dualign.models.language_model import LanguageModel
from dualign.models.loading import load_language_model
from dualign.models.sampler import TransformersSampler
from dualign.models.templates import response_tokens
from dualign.protocols import Policy
from dualign.records import Prompt
from dualign.runs.journal import Journal
from dualign.runs.store import read_json, write_json
from dualign.scorers.rules import starts_with_refusal
from dualign.train.sft import Example, SftSettings, fine_tune, save_fitted

SENTENCE = re.compile(r"(?<=[.!?])\s+")
CANDIDATES = 4
"""Own samples a prompt that a mix entry chooses from."""


def warm_start(
    run: OpenRun, model: LanguageModel, inputs: Inputs, prompts: Sequence[Prompt]
) -> tuple[LanguageModel, list[Example]]:
    """Return the reference model and the examples of the last stage; none without a stage.

    The reference is ``model`` after the config's supervised stages, each merged and kept on disk.
    ``prompts``: the train prompts that fit the model.
    """
    config, examples = run.config, list[Example]()
    if not config.policy.warm_start:
        return model, examples
    own = _own_samples(run, model, prompts)
    for number, given in enumerate(config.policy.warm_start):
        # an answer longer than the policy may give cannot be imitated
        longest = min(given.max_target_tokens, config.sampling.max_new_tokens)
        stage = given.model_copy(update={"max_target_tokens": longest})
        rng = np.random.default_rng([config.run.seed, number])
        examples = []
        for entry, mix in enumerate(stage.mix):
            rows = own if mix.target == "own" else inputs.demonstrations[number, entry]
            examples += _examples(model, stage, mix, rows, rng, run.tell)
        model = _stage(run, model, stage, examples, f"policy/{number}")
    return model, examples


def _own_samples(run: OpenRun, model: LanguageModel, prompts: Sequence[Prompt]) -> list[Demonstration]:
    """Return finished samples of the base model to the train prompts, drawn once for all stages."""
    config = run.config
    wanted = [mix for stage in config.policy.warm_start for mix in stage.mix if mix.target == "own"]
    prompts = [prompt for prompt in prompts if any(matches(prompt, mix.where) for mix in wanted)]
    sampling = sampling_of(config)

    def action(folder: Path) -> None:
        run.tell(f"sampling {CANDIDATES} x {len(prompts)} responses of the model as it is, to imitate some")
        drawn = TransformersSampler(model).generate(
            Policy("base"), prompts, CANDIDATES, sampling=sampling, seed=config.run.seed, stage="warm start"
        )
        texts = [[response.text for response in row] for row in drawn]
        write_json(folder / "own.json", dict(zip([prompt.id for prompt in prompts], texts, strict=True)))

    inputs = {
        "model": model.revision, "prompts": [p.id for p in prompts], "sampling": sampling, "seed": config.run.seed,
        "wording": asdict(model.wording),
    }  # fmt: skip
    own = read_json(folder_made(run.journal, "warm start samples", inputs, action, target="policy/own") / "own.json")
    return [(prompt, text) for prompt in prompts for text in own[prompt.id]]


def _stage(
    run: OpenRun, model: LanguageModel, stage: WarmStart, examples: Sequence[Example], target: str
) -> LanguageModel:
    """Return the model after one stage."""
    names = {"learning_rate", "num_train_epochs", "per_device_train_batch_size", "warmup_steps"}
    settings = SftSettings(**stage.model_dump(include=names))
    seed = run.config.run.seed
    inputs = {
        "model": model.revision,
        "examples": canonical_digest([[prompt.text, tokens] for prompt, tokens in examples]),
        "settings": settings,
        "seed": seed,
    }

    def action(folder: Path) -> None:
        run.tell(f"warm start, {target}: {len(examples)} examples")
        report = fine_tune(model, examples, settings=settings, seed=seed, folder=folder / "model")
        for note in report.notes:
            run.tell(note)
        run.tell(f"warm start, {target}: loss {report.first_loss:.2f} -> {report.last_loss:.2f}")

    return _reload(model, folder_made(run.journal, "warm start", inputs, action, target=target) / "model")


def keep_merged(model: LanguageModel, journal: Journal) -> LanguageModel:
    """Return ``model``, into which the config's adapter is merged, as it is read from the run directory.

    There it is the base that the adapters of the run's policies are for; no other folder holds these weights.
    """

    def action(folder: Path) -> None:
        save_fitted(model, {}, folder / "model")

    inputs = {"model": model.revision}
    return _reload(model, folder_made(journal, "merge adapter", inputs, action, target="policy/adapter") / "model")


def _reload(model: LanguageModel, folder: Path) -> LanguageModel:
    """Return the model of ``folder`` under the settings of ``model``."""
    dtype = str(model.model.dtype).removeprefix("torch.")
    return load_language_model(
        folder,
        temperature=model.temperature,
        max_prompt_tokens=model.max_prompt_tokens,
        max_response_tokens=model.max_response_tokens,
        wording=model.wording,
        dtype=dtype,
    )


def _examples(
    model: LanguageModel,
    stage: WarmStart,
    mix: Mix,
    rows: Sequence[Demonstration],
    rng: np.random.Generator,
    tell: Tell,
) -> list[Example]:
    """Return the examples of one entry of the mix, from ``rows`` of a file or of the model's own samples.

    Raises:
        ConfigError: there are fewer than the entry wants.
    """
    if mix.target == "demonstration":
        pairs = [(prompt, text) for prompt, text in rows if prompt_tokens(model, prompt) is not None]
        if len(pairs) < len(rows):
            tell(
                f"warm start: {len(rows) - len(pairs)} of {len(rows)} demonstrations left out: the prompt has more "
                f"than {model.max_prompt_tokens} tokens, or the template refuses it"
            )
        check_given(model.turns, [text for _, text in pairs], "policy.warm_start.demonstrations")
    else:
        pairs = [(prompt, text) for prompt, text in rows if matches(prompt, mix.where) and _kept(text, mix)]
    cut = [(prompt, first_sentences(model, text, stage.max_target_tokens)) for prompt, text in pairs]
    # one answer a prompt: the first that can be cut at the end of a sentence
    first = {prompt.id: (prompt, tokens) for prompt, tokens in reversed(cut) if tokens is not None}
    usable = list(first.values())
    if lost := sum(tokens is None for _, tokens in cut):
        tell(
            f"warm start: {lost} of {len(cut)} answers ({mix.target}) left out: no whole first sentence of theirs fits "
            f"into {stage.max_target_tokens} tokens"
        )
    if len(usable) < mix.count:
        raise ConfigError(
            f"policy.warm_start: {mix.count} examples wanted ({mix.target}, keep {mix.keep}, where {mix.where}), "
            f"{len(usable)} are there; lower the count"
        )
    order = rng.permutation(len(usable))[: mix.count]
    return [usable[k] for k in order]


def _kept(text: str, mix: Mix) -> bool:
    """Return whether an own sample may be imitated."""
    refuses = starts_with_refusal(text)
    return bool(text.strip()) and (mix.keep == "any" or refuses == (mix.keep == "refusing"))


def first_sentences(model: LanguageModel, text: str, limit: int) -> tuple[int, ...] | None:
    """Return the tokens of the first whole sentences within ``limit`` tokens, EOS included; none: not even one fits."""
    best: tuple[int, ...] | None = None
    sentences = SENTENCE.split(text.strip())
    for count in range(1, len(sentences) + 1):
        part = " ".join(sentences[:count])
        if not part.endswith((".", "!", "?")):
            break
        tokens = response_tokens(model, part)
        if len(tokens) > limit:
            break
        best = tokens
    return best
