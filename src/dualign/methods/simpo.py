"""SimPO: preferences on mean log-probabilities a token, without a reference (Meng, Xia & Chen 2024, arXiv 2405.14734).

An implicit reward of ``beta log pi(y|x) / |y|`` must lead by a margin gamma. Labels from scores, the dual rule and
limits are new. On a table, where a response is one token, soft labels without a margin end at ``exp(r_lambda / beta)``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dualign.maths.exact import FiniteProblem, FloatArray
from dualign.maths.preference import relabel
from dualign.methods.loop import with_columns
from dualign.methods.options import NOT_NEGATIVE, POSITIVE, Option, Options
from dualign.methods.recipe import Recipe
from dualign.protocols import Objective, Problem, Side

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, REFERENCE = "tokens", "log_reference"
"""Per-response columns: |y|, and the reference's log-probability, which a log-ratio is turned back by."""


def simpo(plain: Objective, options: Options) -> Objective:
    """Return ``-log sigmoid((beta (mean_w - mean_l) - gamma) / temperature)`` of mean log-probabilities (eq. 6)."""
    beta, lead = float(options["scale"]) * plain.beta, float(options["gamma_beta_ratio"])

    def loss(preferred: Side, other: Side) -> Tensor:
        from torch.nn.functional import logsigmoid

        means = [(side.log_ratio + side.columns[REFERENCE]) / side.columns[TOKENS] for side in (preferred, other)]
        return -logsigmoid(beta * (means[0] - means[1] - lead))

    return replace(plain, loss=loss, beta=beta, columns=(TOKENS, REFERENCE))


def with_lengths(problem: Problem) -> Problem:
    """Return ``problem`` with each response's number of tokens and reference log-probability as columns."""
    tokens = [np.array([len(r.tokens) or 1 for r in group.responses], dtype=float) for group in problem.groups]
    reference = problem.backend.log_probs(problem.reference, problem.groups)
    return replace(problem, groups=with_columns(problem.groups, **{TOKENS: tokens, REFERENCE: reference}))


def simpo_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return ``exp(r_lambda / beta) / Z`` over the responses that there are: the policy without a margin."""
    scores = relabel(problem.reward, problem.costs, multipliers) / (float(options["scale"]) * problem.beta)
    logits = np.where(np.isfinite(problem.log_reference), scores, -np.inf)
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


SIMPO = Recipe(
    "simpo",
    simpo,
    (
        Option(
            "scale",
            10.0,
            "coefficient of the mean log-probability a token, as a multiple of the problem's beta; an answer's length "
            "makes it as sharp as DPO",
            within=POSITIVE,
        ),
        Option("gamma_beta_ratio", 0.5, "gamma / beta: the lead that is asked of a winner", within=NOT_NEGATIVE),
    ),
    prepare=with_lengths,
)
