"""The ladder of policies, and the opening of the calibration prompts, counted by evidence and not by name.

The journal keeps a record of each opening: the promise (claim and prompts) before anything is sampled, and the hash of
what was sampled and scored afterwards. The same promise with the same evidence is the same opening, however often its
phases are done again; anything else is a further one, and pays for itself (``claim.Opening``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualign.certificate.certify import certify, claim_of, invalid, overdrawn
from dualign.certificate.claim import Requirement, Seal, Terms, Units, asked, seal
from dualign.certificate.held_out import Costs
from dualign.errors import DataError
from dualign.hashing import canonical_digest, folder_digests
from dualign.job.measurement import Scored, constrained, slice_of
from dualign.job.phases import FAMILY, Job, key_of, looks, read_choice
from dualign.job.search import Search
from dualign.protocols import Policy
from dualign.records import Certificate, Evaluation, FloatArray, Iterate
from dualign.runs.journal import Journal, read_events
from dualign.runs.store import read_json, read_manifest

FEASIBLE = 1.645
"""Standard errors below a limit at which it counts as met on tune prompts."""
STAGE = "calibration"
PROMISE, EVIDENCE = "opening-", "evidence-"
"""Choices of the journal, with the number of the opening behind."""
CERTIFICATE = "certificate.json"
FIT, ADAPTER = "fit.json", "adapter_config.json"
PLACES = ("base_model_name_or_path", "revision", "peft_version")
"""Of an adapter's config: where its base was and who wrote it; the base's weights are in the job's identity."""


def limits_met(evaluation: Evaluation, limits: FloatArray) -> bool:
    """Return whether every limit holds with its error bar."""
    return bool(np.all(evaluation.costs - limits + FEASIBLE * evaluation.cost_errors <= 0))


def safety(evaluation: Evaluation, limits: FloatArray) -> float:
    """Return the largest violation in standard errors: smaller is safer."""
    return float(np.max((evaluation.costs - limits) / np.maximum(evaluation.cost_errors, 1e-12)))


def preferred(measured: Sequence[Iterate], limits: FloatArray) -> Iterate:
    """Return the best-reward iterate among those whose limits hold with their error bars, else the closest."""
    met = [iterate for iterate in measured if limits_met(iterate.evaluation, limits)]
    if met:
        return max(met, key=lambda iterate: iterate.evaluation.reward)
    return min(measured, key=lambda iterate: safety(iterate.evaluation, limits))


def ladder(measured: Sequence[Iterate], limits: FloatArray, rungs: int) -> list[Iterate]:
    """Return at most ``rungs`` policies, safest first: the preferred one and the safer ones nearest to it in reward.

    The order uses tune prompts alone, so it is fixed before the calibration prompts are opened.
    """
    first = preferred(measured, limits)
    bound = safety(first.evaluation, limits)
    safer = [i for i in measured if i is not first and safety(i.evaluation, limits) < bound]
    safer.sort(key=lambda iterate: -iterate.evaluation.reward)
    chosen = [first, *safer[: rungs - 1]]
    return sorted(chosen, key=lambda iterate: safety(iterate.evaluation, limits))


def open_calibration(search: Search, rungs: Sequence[Iterate]) -> Certificate:
    """Return the certificate: the claim is sealed on disk first, then the calibration prompts are sampled.

    ``rungs`` are in the order of testing; the last is the preferred policy. Every opening of this run directory is
    counted by what was sampled and scored, and paid for; an identical one is the one it was.
    """
    job = search.job
    kept = constrained(job.splits["calibration"], job.constraints)
    terms = _terms(search, rungs[-1].policy)
    names = [rung.policy.name for rung in rungs]
    weights = {rung.policy.name: fingerprint(job, rung.policy) for rung in rungs}
    groups = Units.of({prompt.id: prompt.cluster for prompt in kept})
    limited = {c.name: [prompt.id for prompt in constrained(kept, [c])] for c in job.constraints}
    sealed = seal(asked(limited), claim_of(terms, names, groups, weights))
    before, number = records(job.journal), next_number(job, sealed)
    look, reasons = looks(job, number), lost(job)
    if before and before[0].sealed.prompts != sealed.prompts:  # some may have been left out for their costs
        reasons.append("the prompts are not those that were sealed")
    reasons += overdrawn(look)
    if reasons:
        return invalid(terms, sealed.claim, reasons, sealed=sealed, opening=look)
    promise(job, number, sealed)
    job.tell(f"opening {len(kept)} calibration prompts for {', '.join(names)}")
    n = job.config.certificate.responses_per_prompt
    relative = any(functional.spec == "relative" for functional in job.functionals)
    reference = search.answers(job.reference, kept, n, STAGE) if relative else None
    made = {rung.policy.name: search.answers(rung.policy, kept, n, STAGE) for rung in rungs}
    look = looks(job, opened(job, sealed, evidence_of(list(made.values()), reference)))
    if look.number > 1:
        job.tell(f"opening {look.number} of the calibration prompts: tested at {look.spent(terms.delta):.3g}")
    observations = {name: _costs(job, answers, reference) for name, answers in made.items()}
    rewards = {rung.policy.name: rung.evaluation.reward for rung in rungs}
    return certify(observations, terms, rewards=rewards, sealed=sealed, opening=look, weights=weights)


def _terms(search: Search, preferred: Policy) -> Terms:
    """Return all that is claimed.

    A threshold (CVaR) is the VaR of the ``preferred`` policy's costs on tune prompts, and part of the claim: it is
    known before the calibration prompts are opened, and one number serves all rungs. Any threshold bounds the CVaR
    from above, so a rung that it fits less well is certified less often, never wrongly; the preferred policy is the
    one with the least room below its limit.
    """
    job = search.job
    tuned = search.samples(preferred)
    slices = [slice_of(tuned.prompts, constraint.where) for constraint in job.constraints]
    n, reference = job.config.certificate.responses_per_prompt, fingerprint(job, job.reference)
    # what a relative limit is relative to: these weights, and a mean over draws of their own
    against = f"the reference (weights {reference}, mean of {n} response(s) a prompt)"
    requirements = {
        constraint.name: Requirement(
            limit=constraint.limit,
            cap=constraint.cap,
            functional=functional.fit(tuned.costs[rows, :, i]),
            scorer=f"{job.costs[i].id}@{job.costs[i].revision[:12]}",
            where=constraint.where,
            floor=constraint.floor,
            against=against if functional.spec == "relative" else "",
        )
        for i, (constraint, functional, rows) in enumerate(zip(job.constraints, job.functionals, slices, strict=True))
    }
    sampling = job.config.sampling
    decoding = (
        f"temperature {sampling.temperature:g}, at most {sampling.max_new_tokens} tokens, no top-k or top-p, "
        f"{n} response(s) a prompt{job.decoding}{_selection(job, preferred)}"
    )
    return Terms(requirements, delta=round(1 - job.config.certificate.confidence, 12), decoding=decoding)


def _selection(job: Job, policy: Policy) -> str:
    """Return how a policy that selects its answers does so; empty for one that is drawn from."""
    choice = read_choice(policy)
    if choice is None:
        return ""
    by = f"{job.reward.id}@{job.reward.revision[:12]}"
    return f", each the best of {choice.n} of the reference by reward ({by}) less multipliers times costs"


def _costs(job: Job, made: Scored, reference: Scored | None) -> dict[str, Costs]:
    """Return the costs of one policy by constraint, on the constraint's slice."""
    by_name = {}
    for i, constraint in enumerate(job.constraints):
        rows = slice_of(made.prompts, constraint.where)
        n = made.reward.shape[1]
        ids = [made.prompts[k].id for k in rows for _ in range(n)]
        clusters = [made.prompts[k].cluster for k in rows for _ in range(n)]
        baseline = None if reference is None else reference.costs[rows, :, i].mean(axis=1).repeat(n)
        by_name[constraint.name] = Costs(ids, made.costs[rows, :, i].ravel(), clusters, reference=baseline)
    return by_name


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
    if not known and _traces(job):
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


def _traces(job: Job) -> bool:
    """Return whether the run directory holds answers of a trained policy to the calibration prompts, or did so once.

    That is what its manifest lists, or its journal; answers of the reference serve relative limits.
    """
    events = [event for event in read_events(job.run) if event.get("event") in ("started", "finished")]
    targets = [str(event.get("target", "")) for event in events]
    targets += [name.rsplit("/", 1)[0] for name in read_manifest(job.run)]
    ends = (f"/samples-{STAGE}", f"/scores-{STAGE}")
    known = any(target.startswith("rounds/") and target.endswith(ends) for target in targets)
    return known or any(any(job.run.glob(f"rounds/*{end}*")) for end in ends)


def next_number(job: Job, sealed: Seal) -> int:
    """Return the number of the opening that ``sealed`` would be, as far as is known before anything is sampled."""
    known = records(job.journal)
    return next((record.number for record in known if record.sealed == sealed), len(known) + 1)


def promise(job: Job, number: int, sealed: Seal) -> None:
    """Record the promise on disk, before anything is sampled; one that stands already is left."""
    job.journal.choice(f"{PROMISE}{number}", lambda: {"claim": sealed.claim, "prompts": sealed.prompts})


def opened(job: Job, sealed: Seal, evidence: str) -> int:
    """Return which opening the evidence is of; it is recorded.

    The same promise with other evidence (answers drawn anew, another scorer behind the same name) is a further one.
    """
    known = records(job.journal)
    same = [record for record in known if record.sealed == sealed]
    number = next((r.number for r in same if r.evidence == evidence), None)
    number = number or next((r.number for r in same if r.evidence is None), len(known) + 1)
    promise(job, number, sealed)
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
