"""The ladder of policies, and the opening of the calibration prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualign.certificate.certify import certify, claim_of, invalid, overdrawn
from dualign.certificate.claim import Requirement, Seal, Terms, Units, asked, seal
from dualign.certificate.held_out import Costs
from dualign.job import openings
from dualign.job.measurement import Scored, constrained, slice_of
from dualign.job.phases import Job, read_choice
from dualign.job.search import Search
from dualign.protocols import Policy
from dualign.records import Certificate, Evaluation, FloatArray, Iterate

FEASIBLE = 1.645
"""Standard errors below a limit at which it counts as met on tune prompts."""


def violations(evaluation: Evaluation, limits: FloatArray) -> FloatArray:
    """Return cost - limit, shape ``[constraint]``; positive is broken."""
    return np.asarray(evaluation.costs - limits)


def limits_met(evaluation: Evaluation, limits: FloatArray) -> bool:
    """Return whether every limit holds with its error bar."""
    return bool(np.all(violations(evaluation, limits) + FEASIBLE * evaluation.cost_errors <= 0))


def safety(evaluation: Evaluation, limits: FloatArray) -> float:
    """Return the largest violation in standard errors: smaller is safer."""
    errors = np.maximum(evaluation.cost_errors, 1e-12)
    return float(np.max(violations(evaluation, limits) / errors))


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
    counted by what was sampled and scored, and paid for (``openings``); an identical one is the one it was.
    """
    job = search.job
    kept = constrained(job.splits["calibration"], job.constraints)
    terms = _terms(search, rungs[-1].policy)
    names = [rung.policy.name for rung in rungs]
    weights = {rung.policy.name: openings.fingerprint(job, rung.policy) for rung in rungs}
    groups = Units.of({prompt.id: prompt.cluster for prompt in kept})
    sealed = seal(_asked(job), claim_of(terms, names, groups, weights))
    look = openings.looks(job, openings.next_number(job, sealed))
    reasons = [*openings.lost(job), *_other_prompts(job, sealed), *overdrawn(look)]
    if reasons:
        return invalid(terms, sealed.claim, reasons, sealed=sealed, opening=look)
    openings.promise(job, sealed)
    job.tell(f"opening {len(kept)} calibration prompts for {', '.join(names)}")
    n = job.config.certificate.responses_per_prompt
    relative = any(functional.spec == "relative" for functional in job.functionals)
    reference = search.answers(job.reference, kept, n, openings.STAGE) if relative else None
    made = {rung.policy.name: search.answers(rung.policy, kept, n, openings.STAGE) for rung in rungs}
    look = openings.looks(job, openings.opened(job, sealed, openings.evidence_of(list(made.values()), reference)))
    if look.number > 1:
        job.tell(f"opening {look.number} of the calibration prompts: tested at {look.spent(terms.delta):.3g}")
    observations = {name: _costs(job, answers, reference) for name, answers in made.items()}
    rewards = {rung.policy.name: rung.evaluation.reward for rung in rungs}
    return certify(observations, terms, rewards=rewards, sealed=sealed, opening=look, weights=weights)


def _other_prompts(job: Job, sealed: Seal) -> list[str]:
    """Return a reason where the first opening was of other prompts: some may have been left out for their costs."""
    first = next(iter(openings.records(job.journal)), None)
    if first is None or first.sealed.prompts == sealed.prompts:
        return []
    return ["the prompts are not those that were sealed"]


def _asked(job: Job) -> set[str]:
    """Return what is sealed of the calibration prompts: which they are, and of which limits."""
    prompts = job.splits["calibration"]
    return asked({c.name: [prompts[k].id for k in slice_of(prompts, c.where)] for c in job.constraints})


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
    requirements = {
        constraint.name: Requirement(
            limit=constraint.limit,
            cap=constraint.cap,
            functional=functional.fit(tuned.costs[rows, :, i]),
            scorer=f"{job.costs[i].id}@{job.costs[i].revision[:12]}",
            where=constraint.where,
            floor=constraint.floor,
            against=_reference_in_words(job) if functional.spec == "relative" else "",
        )
        for i, (constraint, functional, rows) in enumerate(zip(job.constraints, job.functionals, slices, strict=True))
    }
    sampling = job.config.sampling
    decoding = (
        f"temperature {sampling.temperature:g}, at most {sampling.max_new_tokens} tokens, no top-k or top-p, "
        f"{job.config.certificate.responses_per_prompt} response(s) a prompt{job.decoding}{_selection(job, preferred)}"
    )
    return Terms(requirements, delta=round(1 - job.config.certificate.confidence, 12), decoding=decoding)


def _reference_in_words(job: Job) -> str:
    """Return what a relative limit is relative to: these weights, and a mean over draws of their own."""
    n = job.config.certificate.responses_per_prompt
    return f"the reference (weights {openings.fingerprint(job, job.reference)}, mean of {n} response(s) a prompt)"


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
