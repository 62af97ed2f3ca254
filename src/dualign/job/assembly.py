"""From a config to a ``Job`` on a language model: prompts, scorers, model, warm start, backend."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dualign.config import Config, Mix, WarmStart
from dualign.data.prompts import Demonstration
from dualign.errors import ConfigError
from dualign.hashing import canonical_digest
from dualign.job.checks import constraints_of, direction_of, scorer_specs
from dualign.job.inputs import Inputs, read_inputs, short_enough
from dualign.job.measurement import matches
from dualign.job.phases import Job, OpenRun, Tell, folder_made
from dualign.job.reading import (
    Reader,
    check_given,
    claimed,
    dated,
    longest_prompt,
    model_name,
    prompt_tokens,
    sampling_of,
    template_notes,
    wording_of,
)
from dualign.models.language_model import LanguageModel, choose_compute
from dualign.models.loading import load_language_model
from dualign.models.log_probs import PairScorer, check_head
from dualign.models.log_probs import rows as token_rows
from dualign.models.sampler import TransformersSampler
from dualign.models.templates import response_tokens
from dualign.protocols import Policy, Scorer
from dualign.records import Prompt
from dualign.runs.journal import Journal
from dualign.runs.store import read_json, write_json
from dualign.scorers.checked import checked, without_reasoning
from dualign.scorers.lexical import trained
from dualign.scorers.rules import starts_with_refusal
from dualign.scorers.table import KINDS, make_scorer
from dualign.train.settings import TrainingSettings
from dualign.train.sft import Example, SftSettings, fine_tune, save_fitted
from dualign.train.transformer import TransformerBackend


def assemble(run: OpenRun, inputs: Inputs) -> Job:
    """Return the job: classifiers are trained, the model is loaded and warm-started, scorers are made.

    Raises:
        DualignError: any mistake that is seen only with weights, before anything expensive starts.
    """
    config, inputs = run.config, _with_model(run.config, inputs)
    for line in inputs.given.warnings:
        run.tell(line)
    specs, qualities = _trained(run, inputs)
    model, splits, notes = _loaded(run, inputs)
    scorers = _scorers(config, inputs, specs, model)
    model, imitated = warm_start(run, model, inputs, splits["train"])
    trained_on = {prompt.id for prompt in splits["train"]}
    facts = {
        "notes": [*inputs.notes, *notes],
        "scorers": _scorer_facts(scorers, qualities),
        "data_check": list(inputs.given.checks),
        "warnings": list(inputs.given.warnings),
    }
    job = job_on(run, model, splits, scorers, facts, wording=[asdict(model.wording)], pretraining=imitated)
    pairs = tuple(pair for pair in inputs.given.pairs if pair[0].id in trained_on)
    return replace(job, pairs=pairs, decoding=claimed(model, config))


def job_on(
    run: OpenRun,
    model: LanguageModel,
    splits: Mapping[str, Sequence[Prompt]],
    scorers: Mapping[str, Scorer],
    facts: Mapping[str, Any],
    *,
    wording: Sequence[Any] = (),
    pretraining: Sequence[Example] = (),
) -> Job:
    """Return the job of the config on a model that is ready, with the scorers of ``scorer_specs``.

    ``wording``: how the model puts prompts into words, as far as its revision does not say.
    """
    config = run.config
    constraints, functionals = constraints_of(config)
    settings = TrainingSettings(**config.training.model_dump(exclude={"beta", "dtype"}))

    def backend_at(folder: Path) -> TransformerBackend:
        return TransformerBackend(
            model,
            settings=settings,
            sampler=TransformersSampler(model),
            sampling=sampling_of(config),
            folder=folder,
            cache=run.folder / "reference" / "log-probs",  # of the reference, computed once a run
            pretraining=pretraining,
        )

    return Job(
        config=config,
        journal=run.journal,
        backend_at=backend_at,
        reference=Policy("reference"),
        identity=canonical_digest(
            [model.revision, config.training.model_dump(), config.sampling.model_dump(), *wording]
        ),
        splits=splits,
        constraints=constraints,
        functionals=functionals,
        reward=scorers["reward"],
        costs=tuple(scorers[f"cost {constraint.name}"] for constraint in constraints),
        metrics={name.removeprefix("metric "): s for name, s in scorers.items() if name.startswith("metric ")},
        judges={name.removeprefix("judge "): s for name, s in scorers.items() if name.startswith("judge ")},
        facts=facts,
        tell=run.tell,
    )


def _with_model(config: Config, inputs: Inputs) -> Inputs:
    """Return the inputs, read anew with the model's tokenizer where that had to be fetched."""
    return read_inputs(config, inputs.base, fetch=True) if inputs.reader is None else inputs


def _scorers(
    config: Config, inputs: Inputs, specs: Mapping[str, Mapping[str, Any]], model: LanguageModel
) -> dict[str, Scorer]:
    """Return all scorers by name, those that are to see no reasoning behind what takes it from the answers."""
    scorers = dict(inputs.scorers)
    for name, spec in specs.items():
        # a metric is of its kind's direction, a cost where the kind leaves it open
        direction = direction_of(name) or KINDS[spec["kind"]].direction or "cost"
        scorers[name] = make_scorer(spec, direction=direction, folder=inputs.base, tokenizer=model.tokenizer)
    return {name: _shown_answers(scorers[name], config, model) for name in scorer_specs(config)}


def _shown_answers(scorer: Scorer, config: Config, model: LanguageModel) -> Scorer:
    """Return the scorer, behind what takes reasoning from answers where the config wants it so."""
    if config.sampling.reasoning == "keep":
        return scorer
    opened = model.turns is not None and model.turns.opens_reasoning
    return checked(scorer, shown=partial(without_reasoning, opened=opened))


def warm_started(run: OpenRun, inputs: Inputs) -> LanguageModel:
    """Return the model after the config's supervised stages: the reference of the job."""
    inputs = _with_model(run.config, inputs)
    for line in inputs.notes:
        run.tell(line)
    model, splits, _ = _loaded(run, inputs)
    return warm_start(run, model, inputs, splits["train"])[0]


def _loaded(run: OpenRun, inputs: Inputs) -> tuple[LanguageModel, dict[str, list[Prompt]], list[str]]:
    """Return the model as it is published, in the dtype of this machine, the prompts that fit it, and notes on both."""
    model = dated(_model(run.config, inputs.reader), run.config, run.journal)
    splits, dropped = short_enough(inputs.splits, model.template, model.max_prompt_tokens)
    for note in model.notes:
        run.tell(f"warning: {note}")
    notes = [dropped, *model.notes]
    if model.turns is not None:
        notes += template_notes(model.tokenizer, model.turns, model.wording)
        for note in model.turns.notes:
            run.tell(f"note: {note}")
    model = _in_dtype(run, model)
    # before hours of sampling: can the model be read as the fits will read it?
    batch = token_rows([(tuple(model.template(splits["train"][0])), ((model.eos,),))], model.pad)
    check_head(PairScorer(model), batch.to(model.device))
    return (model if run.config.policy.adapter is None else keep_merged(model, run.journal)), splits, notes


def _trained(run: OpenRun, inputs: Inputs) -> tuple[dict[str, dict[str, Any]], dict[str, Mapping[str, Any]]]:
    """Return the scorers' descriptions with every classifier trained, and the classifiers' quality."""
    specs = {name: spec for name, spec in scorer_specs(run.config).items() if name not in inputs.scorers}

    def action(folder: Path) -> None:
        folder.joinpath("classifiers").mkdir(exist_ok=True)
        trained(specs, folder=inputs.base, out=folder / "classifiers")

    folder = folder_made(run.journal, "train scorers", {"specs": specs}, action, target="scorers")
    done, qualities = trained(specs, folder=inputs.base, out=folder / "classifiers")
    for name, figures in qualities.items():
        run.tell(
            f"classifier {name}: accuracy {figures['accuracy']:.3f} "
            f"[{figures['accuracy_low']:.3f}, {figures['accuracy_high']:.3f}], AUC {figures['auc']:.3f}, "
            f"{figures['rows']} rows, cross-validated"
        )
    return done, qualities


def _scorer_facts(scorers: Mapping[str, Any], qualities: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row a scorer for the report."""
    rows = [
        {"id": f"{name}: {s.id}", "revision": s.revision, "direction": s.direction, "quality": {}}
        for name, s in scorers.items()
    ]
    return rows + [
        {"id": name, "revision": "", "direction": "classifier", "quality": dict(figures)}
        for name, figures in qualities.items()
    ]


def _model(config: Config, reader: Reader | None = None) -> LanguageModel:
    """Return the model as it is published, in float32, with the adapter that is named merged into it."""
    model = load_language_model(
        model_name(config),
        temperature=config.sampling.temperature,
        max_response_tokens=config.sampling.max_new_tokens,
        wording=wording_of(config),
        adapter=None if config.policy.adapter is None else Path(config.policy.adapter),
        reader=None if reader is None else reader.language_model,
    )
    return replace(model, max_prompt_tokens=longest_prompt(config, model.model.config))


def _in_dtype(run: OpenRun, model: LanguageModel) -> LanguageModel:
    """Return the model in the dtype and with the threads of this machine: by timing, once a run, or as configured."""
    import torch

    def timed() -> dict[str, Any]:
        asked = run.config.training.dtype
        return asdict(choose_compute(model.model)) | ({} if asked == "auto" else {"dtype": asked})

    compute = run.journal.choice("compute", timed)
    dtype, threads = str(compute["dtype"]), int(compute["threads"])
    run.tell(f"computing in {dtype} on {threads} thread(s)")
    torch.set_num_threads(threads)
    model.model.to(getattr(torch, dtype))
    return replace(model, revision=f"{model.revision}-{dtype}")


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
