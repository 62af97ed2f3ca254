"""How often the calibration prompts of a run directory were opened, counted by evidence and not by name.

The journal keeps a record of each opening: the promise (claim and prompts) before anything is sampled, and the hash of
what was sampled and scored afterwards. The same promise with the same evidence is the same opening, however often its
phases are done again; anything else is a further one, and pays for itself (``claim.Opening``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.certificate.claim import Opening, Seal, Units
from dualign.errors import DataError
from dualign.hashing import canonical_digest, folder_digests
from dualign.job.measurement import Scored
from dualign.job.phases import Job, key_of, read_choice
from dualign.protocols import Policy
from dualign.runs.journal import Journal, read_events
from dualign.runs.store import read_json, read_manifest

STAGE = "calibration"
PROMISE, EVIDENCE = "opening-", "evidence-"
"""Choices of the journal, with the number of the opening behind."""
CERTIFICATE = "certificate.json"
FAMILY = "family.json"
"""File of a cell of a comparison, written before it is trained: how many cells were fixed together (``cells``), and
which opening of the comparison they are (``opening``)."""
FIT, ADAPTER = "fit.json", "adapter_config.json"
PLACES = ("base_model_name_or_path", "revision", "peft_version")
"""Of an adapter's config: where its base was and who wrote it; the base's weights are in the job's identity."""


@dataclass(frozen=True, slots=True)
class Record:
    """One opening of the calibration prompts."""

    number: int
    sealed: Seal
    evidence: str | None
    """Hash of what was sampled and scored; none while it is not known."""


def records(journal: Journal) -> list[Record]:
    """Return the openings of the run so far, in order."""
    choices = journal.choices
    found: list[Record] = []
    while (promise := choices.get(f"{PROMISE}{len(found) + 1}")) is not None:
        number = len(found) + 1
        found.append(Record(number, Seal(**promise), choices.get(f"{EVIDENCE}{number}")))
    return found


def lost(job: Job) -> list[str]:
    """Return why it cannot be told how often the prompts were opened; empty where it can.

    To be asked before the promise of this opening is recorded.
    """
    known, choices = len(records(job.journal)), job.journal.choices
    if "seal" in choices and not known:
        return ["an earlier version opened the calibration prompts of this run directory and kept no evidence"]
    numbers = [int(name.split("-")[1]) for name in choices if name.startswith((PROMISE, EVIDENCE))]
    if max(numbers, default=0) > known:
        return ["the record of an earlier opening of the calibration prompts is gone"]
    if not known and (_traces(job) or any(_opens(event) for event in read_events(job.run))):
        return ["the calibration prompts were opened before, and the evidence of it is gone"]
    certified = _certified(job)
    if certified not in {None, *(record.sealed.hash for record in records(job.journal) if record.evidence)}:
        return [f"the calibration prompts were opened for the {CERTIFICATE} that stands here, and its evidence is gone"]
    listed = read_manifest(job.run)
    if FAMILY in listed and not (job.run / FAMILY).is_file():
        return [f"{FAMILY}, which says which opening of its comparison this cell is, is gone"]
    return []


def _certified(job: Job) -> str | None:
    """Return the seal of the certificate in the run directory; none where nothing was opened for it."""
    path = job.run / CERTIFICATE
    try:
        found = read_json(path) if path.is_file() else {}
    except DataError:  # it is written anew from what was opened
        found = {}
    return None if found.get("verdict", "INVALID") == "INVALID" else str(found.get("seal"))


def _opens(event: Mapping[str, Any]) -> bool:
    """Return whether an event of the journal is the sampling or scoring of a policy on the calibration prompts."""
    return event.get("event") in ("started", "finished") and _is_opening(str(event.get("target", "")))


def _is_opening(target: str) -> bool:
    """Return whether a phase's target holds answers of a trained policy; the reference's serve relative limits."""
    return target.startswith("rounds/") and target.endswith((f"/samples-{STAGE}", f"/scores-{STAGE}"))


def _traces(job: Job) -> bool:
    """Return whether the run directory holds, or its manifest lists, answers to the calibration prompts."""
    listed = (name.rsplit("/", 1)[0] for name in read_manifest(job.run))
    return any(map(_is_opening, listed)) or any(
        any(job.run.glob(f"rounds/*/{kind}-{STAGE}*")) for kind in ("samples", "scores")
    )


def looks(job: Job, number: int = 1) -> Opening:
    """Return what the ``number``-th opening of this run directory may spend."""
    family = read_json(job.run / FAMILY, run=job.run) if (job.run / FAMILY).is_file() else {}
    planned = job.config.certificate.planned_openings
    return Opening(number + int(family.get("opening", 1)) - 1, planned=planned, cells=family.get("cells"))


def next_number(job: Job, sealed: Seal) -> int:
    """Return the number of the opening that ``sealed`` would be, as far as is known before anything is sampled."""
    known = records(job.journal)
    return next((record.number for record in known if record.sealed == sealed), len(known) + 1)


def promise(job: Job, sealed: Seal) -> None:
    """Record the promise on disk, before anything is sampled; one that stands already is left."""
    number = next_number(job, sealed)
    job.journal.choice(f"{PROMISE}{number}", lambda: {"claim": sealed.claim, "prompts": sealed.prompts})


def opened(job: Job, sealed: Seal, evidence: str) -> int:
    """Return which opening the evidence is of; it is recorded.

    The same promise with other evidence (answers drawn anew, another scorer behind the same name) is a further one.
    """
    known = records(job.journal)
    same = [record for record in known if record.sealed == sealed]
    number = next((r.number for r in same if r.evidence == evidence), None)
    number = number or next((r.number for r in same if r.evidence is None), len(known) + 1)
    job.journal.choice(f"{PROMISE}{number}", lambda: {"claim": sealed.claim, "prompts": sealed.prompts})
    job.journal.choice(f"{EVIDENCE}{number}", lambda: evidence)
    return number


def evidence_of(made: Sequence[Scored], baseline: Scored | None) -> str:
    """Return the hash of what was sampled and scored, policy by policy in the order of testing.

    Names of policies and of clusters do not enter; which prompts are together does.
    """
    every = [*made, *([] if baseline is None else [baseline])]
    return canonical_digest([[_rows(scored), scored.costs] for scored in every])


def _rows(scored: Scored) -> list[Any]:
    unit_of = Units.of({prompt.id: prompt.cluster for prompt in scored.prompts}).cluster_of
    return [
        [prompt.id, unit_of[prompt.id], [[response.text, response.tokens] for response in row]]
        for prompt, row in zip(scored.prompts, scored.responses, strict=True)
    ]


def fingerprint(job: Job, policy: Policy) -> str:
    """Return 16 hexadecimal digits that stand for a policy's weights: of the reference and of its own files.

    A policy that selects has none: what it selects by counts in their place. How long a fit took and where the model
    lay are no part of it: weights that are fitted again are the same ones.
    """
    files: dict[str, Any] = {} if policy.state is None else folder_digests(Path(policy.state))
    files.pop(FIT, None)
    if ADAPTER in files:
        told = read_json(Path(str(policy.state)) / ADAPTER)
        files[ADAPTER] = {key: value for key, value in told.items() if key not in PLACES}
    if read_choice(policy) is None:
        return canonical_digest([job.identity, files])[:16]
    scorers = [[scorer.id, scorer.revision] for scorer in job.scorers.values()]
    return canonical_digest([job.identity, files, key_of(job, policy), scorers])[:16]
