"""What a job is given, read once and checked once: prompts by split, given pairs, rows to imitate, the template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dualign.config import Config, Mix, Source, WarmStart
from dualign.data.prompts import Demonstration, DemonstrationFile, PromptFile, read_demonstrations, read_prompts
from dualign.data.splits import near_clusters, split, without_leaks
from dualign.errors import ConfigError, DataError, UsageError, nearest, shown
from dualign.job.checks import constraints_of, scorer_specs, scorers_in
from dualign.job.measurement import matches, slice_of
from dualign.job.pairs import GivenPairs, load_pairs, pairs_in_memory
from dualign.job.reading import KEYS, Reader, check_given, job_reader, template_notes
from dualign.models.adapter_merge import base_note, check_adapter
from dualign.models.loading import check_named
from dualign.models.templates import Template
from dualign.protocols import Scorer
from dualign.records import Constraint, Prompt, named
from dualign.scorers.table import check_length

Splits = dict[str, list[Prompt]]
SPLITS = ("train", "tune", "report", "calibration")
"""From training to the sealed part: a prompt with a near-duplicate in a later split is dropped."""
REASONS = {"auto": "a near-duplicate", "none": "the same prompt"}
OTHER_REASON = "a prompt of the same cluster"
"""Why a prompt is dropped, by ``data.cluster``; anything else names a column."""
DEMONSTRATION_WORDS = 50
"""Prompts of more words are not imitated in a warm start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a job is given besides its config, from files or from memory; no weights are loaded for it."""

    splits: Mapping[str, Sequence[Prompt]]
    """Prompts of ``SPLITS``; with given pairs, ``train`` holds theirs. Longer ones than the model takes are among them:
    a template that reads the clock tells how long they are when its day is known."""
    given: GivenPairs = GivenPairs()
    """Given pairs to train on, and what is to be said of them; none: the reference's own samples."""
    demonstrations: Mapping[tuple[int, int], Sequence[Demonstration]] = field(default_factory=dict)
    """Rows that a warm start may imitate, by the numbers of its stage and of the entry of its mix."""
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """Scorers that are there already, under the names of ``scorer_specs``; they stand in for the config's."""
    base: Path = Path()
    """Where relative paths of the config start."""
    reader: Reader | None = None
    """How the job reads texts; none: its model is not on this machine, so that lengths and template are unchecked."""
    notes: Sequence[str] = ()
    """A sentence for each file, and one for each thing that was left out or cut."""
    model_notes: Sequence[str] = ()
    """What is known of the model without its weights; a job says it when it has them."""

    def facts(self) -> dict[str, Any]:
        """Return what a dry run tells."""
        return {
            "splits": {name: len(prompts) for name, prompts in self.splits.items()},
            "units": {name: units(prompts) for name, prompts in self.splits.items()},
            "notes": [*self.notes, *self.model_notes],
        }


def read_inputs(config: Config, folder: Path, *, fetch: bool = False) -> Inputs:
    """Return what the files of ``config`` hold, each read once, after every check that needs no weights.

    Args:
        config: a job on a language model.
        folder: where its relative paths start, unless ``data.prompts`` says otherwise.
        fetch: whether a model that is not on this machine may be fetched, for its tokenizer and template.

    Raises:
        DualignError: any mistake that can be seen without the model's weights.
    """
    base = folder if config.data.prompts is None else Path(config.data.prompts)
    reader, about = _reader(config, base, fetch=fetch)
    given = load_pairs(config, base, reader)
    splits, notes = load_splits(config, base, given=[prompt for prompt, _, _ in given.pairs])
    demonstrations, more = load_demonstrations(config, base)
    inputs = Inputs(splits=splits, given=given, demonstrations=demonstrations, base=base, reader=reader)
    return _checked(config, replace(inputs, notes=[*given.notes, *notes, *more], model_notes=about))


def inputs_in_memory(
    config: Config,
    prompts: Sequence[Prompt] | Mapping[str, Sequence[Prompt]],
    *,
    pairs: Sequence[tuple[Prompt, str, str]] = (),
    scorers: Mapping[str, Scorer] | None = None,
) -> Inputs:
    """Return inputs that no file holds, checked as those of files; errors are those of ``read_inputs``.

    A model that is not on this machine is fetched.

    Args:
        config: a job on a language model; the first of its ``data.sources`` stands for the prompts (of its keys
            ``splits`` alone is read), and its warm start reads no file.
        prompts: of every split, divided by hash; or by the name of their split.
        pairs: (prompt, chosen, rejected) to train on; the scorers label them anew.
        scorers: ready scorers under the names of ``scorer_specs``: ``reward``, ``cost NAME``, ``metric NAME``,
            ``judge NAME``.
    """
    reader, about = _reader(config, Path(), fetch=True, ready=scorers or ())
    given = pairs_in_memory(config, pairs, reader)
    splits, notes = split_prompts(config, prompts, given=[prompt for prompt, _, _ in given.pairs])
    inputs = Inputs(splits=splits, given=given, scorers=dict(scorers or {}), reader=reader)
    return _checked(config, replace(inputs, notes=[*given.notes, *notes], model_notes=about))


def _reader(config: Config, base: Path, *, fetch: bool, ready: Collection[str] = ()) -> tuple[Reader | None, list[str]]:
    """Return how the job reads texts, and what is to be said of its adapter, after all checks that need no prompt.

    Checked are the lengths that scorers state, of each whose model is on this machine; the others when they are loaded.

    Raises:
        DualignError: the model's name or adapter is none, or a length is more than a model can hold.
    """
    model, adapter = str(config.policy.model), config.policy.adapter
    check_named(model)
    about = [] if adapter is None else base_note(Path(adapter), check_adapter(Path(adapter)), model)
    for name, spec in scorer_specs(config).items():
        for place, found in scorers_in(spec, f"scorer of {name}") if name not in ready else ():
            check_length(found, base, place)
    return job_reader(config, fetch=fetch), about


def _checked(config: Config, inputs: Inputs) -> Inputs:
    """Return ``inputs`` with what is to be said of the model, after the checks that need prompts and pairs together.

    Raises:
        DualignError: a slice or a warm start lacks prompts, a length is more than a model can hold, or the template has
            no place for the turns of a prompt.
    """
    check_slices(constraints_of(config)[0], inputs.splits)
    check_mixes(config, inputs.splits)
    reader = inputs.reader
    if reader is None:
        told = [f"the template of {shown(str(config.policy.model), 80)} is looked at when the job begins"]
        return replace(inputs, model_notes=[*inputs.model_notes, *told])
    model = reader.language_model
    assert model.turns is not None, "read with its template"
    # each prompt is put into the template, which has to have a place for its turns
    _, dropped = short_enough(inputs.splits, model.template, model.max_prompt_tokens)
    try:
        check_given(model.turns, [one.text for _, *both in inputs.given.pairs for one in both], "data.pairs")
    except UsageError as error:
        raise ConfigError(str(error)) from error
    pinned = "" if config.policy.template_date is not None else " unless the run began earlier"
    about = [dropped, *template_notes(model.tokenizer, model.turns, model.wording, pinned=pinned)]
    if config.policy.template_date is not None and model.wording.date is None:
        about.append("policy.template_date: the template reads no clock; the day changes nothing")
    return replace(inputs, model_notes=[*inputs.model_notes, *about])


def short_enough(
    splits: Mapping[str, Sequence[Prompt]], template: Template, longest: int
) -> tuple[dict[str, list[Prompt]], str]:
    """Return the prompts of at most ``longest`` tokens, and a sentence that counts the others.

    Raises:
        ConfigError: nothing is left of a split.
    """
    kept, gone = dict[str, list[Prompt]](), 0
    for name, prompts in splits.items():
        kept[name] = [prompt for prompt in prompts if len(template(prompt)) <= longest]
        gone += len(prompts) - len(kept[name])
        if prompts and not kept[name]:
            raise ConfigError(
                f"data.sources: all {len(prompts)} prompts of the split {name!r} are longer than {longest} tokens; "
                f"raise {KEYS[0]}, or lower {KEYS[1]} where the model has no more positions"
            )
    return kept, f"{gone} prompts dropped: longer than {longest} tokens"


def load_splits(config: Config, base: Path, *, given: Sequence[Prompt] = ()) -> tuple[Splits, list[str]]:
    """Return the prompts of every split of the config's files, and a sentence for each thing that was left out.

    ``given``: prompts of given pairs; with any, they are the train split.

    Raises:
        MissingError: a file is missing.
        DataError: a row is broken, or prompts run out.
        ConfigError: a split that the job needs has no prompts.
    """
    files = [(source, _prompt_file(base, source)) for source in config.data.sources]
    clusters = _clusters(config, [*given, *(prompt for _, found in files for prompt in found.every)])
    shares = [_parted(config, source, found.prompts, clusters) for source, found in files]
    parts = {name: [prompt for share in shares for prompt in share.get(name, ())] for name in SPLITS}
    splits, notes = _apart(config, parts, clusters, given)
    told = []
    for source, found in files:
        alike = f" ({found.alike} of them in another letter case, white space or Unicode form)" if found.alike else ""
        left = f"{found.rows} rows, {found.too_long} too long, {found.duplicates} duplicates{alike}"
        told.append(f"{Path(source.path).name}: {found.layout}, {len(found.prompts)} prompts ({left})")
    return splits, [*told, *notes]


def split_prompts(
    config: Config, prompts: Sequence[Prompt] | Mapping[str, Sequence[Prompt]], *, given: Sequence[Prompt] = ()
) -> tuple[Splits, list[str]]:
    """Return what ``load_splits`` does, of prompts in memory; a mapping names the split of each itself.

    Raises:
        DataError: prompts run out.
        ConfigError: a split that the job needs has no prompts, or there is none of that name.
    """
    if not isinstance(prompts, Mapping):
        clusters = _clusters(config, [*given, *prompts])
        distinct = list({prompt.id: prompt for prompt in prompts}.values())
        return _apart(config, _parted(config, config.data.sources[0], distinct, clusters), clusters, given)
    for name in prompts:
        if name not in SPLITS:
            raise ConfigError(f"prompts: {nearest(name, SPLITS)}")
    clusters = _clusters(config, [*given, *(prompt for members in prompts.values() for prompt in members)])
    return _apart(config, prompts, clusters, given)


def _prompt_file(base: Path, source: Source) -> PromptFile:
    """Return what was read of a source of prompts."""
    try:
        return read_prompts(
            base / Path(source.path).expanduser(),
            columns=source.columns,
            where=source.where,
            max_words=source.max_words,
            rename=source.rename,
        )
    except UsageError as error:
        raise ConfigError(f"data.sources: {source.path}: rename: {error}") from None


def _parted(
    config: Config, source: Source, prompts: Sequence[Prompt], clusters: Mapping[str, str]
) -> dict[str, list[Prompt]]:
    """Return the prompts of each split of one source, whole clusters on one side."""
    chosen = {str(name): size for name, size in (source.splits or config.data.splits).items()}
    try:
        return split(prompts, chosen, config.run.seed, clusters=clusters)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from None


def _apart(
    config: Config, parts: Mapping[str, Sequence[Prompt]], clusters: Mapping[str, str], given: Sequence[Prompt]
) -> tuple[Splits, list[str]]:
    """Return the splits without what stands in a later one too, each prompt with its cluster, and what is told of it.

    Raises:
        ConfigError: a split that the job needs has no prompts.
    """
    parts = {name: parts.get(name, ()) for name in SPLITS}
    if given:
        parts["train"] = list({prompt.id: prompt for prompt in given}.values())
    left, dropped = without_leaks(parts, clusters)
    gone = sum(map(len, dropped.values()))
    notes = [f"{gone} prompts dropped: {REASONS.get(config.data.cluster, OTHER_REASON)} stands in a later split"]
    for name in SPLITS:
        if not left[name]:
            raise ConfigError(f"data.sources: no prompts for the split {name!r}; give it a count in splits")
    marked = {
        name: [replace(prompt, cluster=clusters[prompt.id]) for prompt in prompts] for name, prompts in left.items()
    }
    counts = {name: (len(marked[name]), units(marked[name])) for name in ("tune", "calibration", "report")}
    notes += [
        f"{name}: {prompts} prompts are {found} units (near-copies, or one cluster, count once)"
        for name, (prompts, found) in counts.items()
        if found < prompts
    ]
    return marked, notes


def _clusters(config: Config, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return prompt id -> name of its cluster, as ``data.cluster`` says: by likeness, each alone, or by a column.

    ``prompts``: of every row, duplicates included.

    Raises:
        ConfigError: a prompt lacks the column, or has nothing in it, or two names.
    """
    column = config.data.cluster
    if column == "auto":
        return near_clusters(prompts)
    if column == "none":
        return {prompt.id: prompt.id for prompt in prompts}
    lacking = [prompt for prompt in prompts if column not in prompt.columns]
    if lacking:
        known = sorted({name for prompt in prompts for name in prompt.columns})
        raise ConfigError(
            f"data.cluster: {len(lacking)} of {len(prompts)} prompts have no column {column!r} (the first begins "
            f"{lacking[0].text[:40]!r}); the columns are {', '.join(known) or 'none'}, and auto and none need none"
        )
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        name, before = prompt.columns[column], first.setdefault(prompt.id, prompt)
        if not name.strip():
            raise ConfigError(
                f"data.cluster: column {column!r} holds nothing for {named(prompt)}; give a prompt that stands alone a "
                "name of its own"
            )
        if before.columns[column] != name:
            raise ConfigError(
                f"data.cluster: {named(prompt)} lies in {column} {name!r} here and in {before.columns[column]!r} at "
                f"{named(before)}; a prompt belongs to exactly one cluster"
            )
    return {prompt: one.columns[column] for prompt, one in first.items()}


def units(prompts: Sequence[Prompt]) -> int:
    """Return how many units of independence there are: clusters, each prompt of no cluster counted alone."""
    return len({prompt.cluster for prompt in prompts})


def check_slices(constraints: Sequence[Constraint], splits: Mapping[str, Sequence[Prompt]]) -> None:
    """Check that every limit's slice has prompts to train, tune and certify on.

    Raises:
        ConfigError: a slice is empty.
    """
    for constraint in constraints:
        for name in ("train", "tune", "calibration"):
            if not len(slice_of(splits[name], constraint.where)):
                raise ConfigError(
                    f"constraints.{constraint.name}.where: no {name} prompt has {dict(constraint.where)}; "
                    "check where, or the sources' columns and splits"
                )


def check_mixes(config: Config, splits: Mapping[str, Sequence[Prompt]]) -> None:
    """Check what can be known of a warm start's examples before the model has answered.

    Raises:
        ConfigError: more own answers are wanted than there are prompts, or demonstrations of no file.
    """
    for number, stage in enumerate(config.policy.warm_start):
        for mix in stage.mix:
            where = f"policy.warm_start.{number}: {mix.count} examples wanted ({mix.target}"
            if mix.target == "demonstration":
                if stage.demonstrations is None:
                    raise ConfigError(f"{where}), but demonstrations names no file")
                continue  # ``load_demonstrations`` counts its rows
            count = sum(matches(prompt, mix.where) for prompt in splits["train"])
            if mix.count > count:
                raise ConfigError(f"{where}, where {mix.where}), one a prompt, and {count} train prompts are there")


def load_demonstrations(config: Config, base: Path) -> tuple[dict[tuple[int, int], list[Demonstration]], list[str]]:
    """Return the rows that each entry of a warm start may imitate, by the numbers of stage and entry, and what is told.

    Raises:
        MissingError: a file is missing.
        DataError: a file is broken, or knows no column that ``where`` names.
        ConfigError: more examples are wanted than there are prompts to imitate an answer to.
    """
    rows, notes = {}, []
    for number, stage in enumerate(config.policy.warm_start):
        for entry, mix in enumerate(stage.mix):
            if mix.target != "demonstration" or stage.demonstrations is None:
                continue
            found = _demonstration_file(config, base, stage, mix)
            count = len({prompt.id for prompt, _ in found.demonstrations})
            where = f", where {mix.where}" if mix.where else ""
            out = f"{found.filtered} outside where, {found.too_long} of more than {DEMONSTRATION_WORDS} words"
            bad = f"{found.negative} with an answer that is marked as bad, {len(found.broken)} broken"
            if mix.count > count:
                raise ConfigError(
                    f"policy.warm_start.{number}: {mix.count} examples wanted (demonstration{where}), one a prompt, "
                    f"and {count} prompts of {stage.demonstrations} are there"
                )
            rows[number, entry] = found.demonstrations
            notes.append(
                f"{Path(stage.demonstrations).name}: {found.layout}, {count} prompts to imitate an answer to{where} "
                f"({found.rows} rows: {out}, {bad})"
            )
    return rows, notes


def _demonstration_file(config: Config, base: Path, stage: WarmStart, mix: Mix) -> DemonstrationFile:
    """Return the rows that an entry of a warm start may imitate: those inside ``where``, and no bad answer.

    Raises:
        MissingError: the file is missing.
        DataError: nothing is left, ``where`` names no column, or more rows are broken than ``data.max_drop`` allows.
        ConfigError: ``rename`` has a name that nothing is read as.
    """
    try:
        found = read_demonstrations(
            base / Path(str(stage.demonstrations)).expanduser(),
            where=mix.where,
            max_words=DEMONSTRATION_WORDS,
            rename=stage.rename,
            imitated=True,
        )
    except UsageError as error:
        raise ConfigError(f"policy.warm_start: {stage.demonstrations}: rename: {error}") from None
    if len(found.broken) > config.data.max_drop * found.rows:
        raise DataError(
            f"{found.broken[0]} ({len(found.broken)} of {found.rows} rows are broken, {config.data.max_drop:.1%} are "
            "allowed: data.max_drop)"
        )
    return found
