"""Losses of policies and of reward and cost models, one number a pair. The only file of ``maths`` with torch.

Log-ratios in, losses out; hyper-parameters by keyword; the caller reduces.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Answers = TypeVar("Answers")
"""What a loss reads of one side of every pair: log-ratios, or whatever else has them."""
PairwiseLoss = Callable[[Answers, Answers], Tensor]


def dpo(preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"], *, beta: float) -> Float[Tensor, " pair"]:
    """Return ``-log sigmoid(beta * margin)`` (Rafailov et al. 2023, eq. 7)."""
    return -functional.logsigmoid(beta * (preferred - other))


def ipo(preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"], *, beta: float) -> Float[Tensor, " pair"]:
    """Return ``(margin - 1 / (2 beta))^2`` (Azar et al. 2023, eq. 17; sums, not means, of log-probabilities)."""
    return (preferred - other - 1 / (2 * beta)) ** 2


def reward_model_loss(
    higher: Float[Tensor, " pair"], lower: Float[Tensor, " pair"], *, regularisation: float
) -> Float[Tensor, " pair"]:
    """Return ``-log sigmoid(higher - lower) + regularisation * mean(higher^2, lower^2)``.

    The pair loss of Bradley and Terry (1952), with the penalty that holds the scores near 0 (Dai et al. 2023,
    Safe RLHF, eq. 6). Scores are known up to a constant a prompt: the penalty alone says where 0 is.

    Args:
        higher: scores of the answers that won: the more helpful ones of a reward, the less safe ones of a cost.
        lower: scores of the others.
        regularisation: weight of the penalty.
    """
    return -functional.logsigmoid(higher - lower) + regularisation * (higher**2 + lower**2) / 2


def cost_model_loss(
    less_safe: Float[Tensor, " pair"],
    safer: Float[Tensor, " pair"],
    less_safe_sign: Float[Tensor, " pair"],
    safer_sign: Float[Tensor, " pair"],
    *,
    regularisation: float,
) -> Float[Tensor, " pair"]:
    """Return the pair loss plus ``-log sigmoid(sign * cost)`` of either answer (Dai et al. 2023, Safe RLHF, eq. 7).

    The two sign terms put the cost's 0 between safe and unsafe. At cost 0 everywhere the loss is 3 log 2.

    Args:
        less_safe: costs of the less safe answers.
        safer: costs of the safer ones; both may be safe, or both unsafe.
        less_safe_sign: +1 where the less safe answer is unsafe, -1 where it is safe.
        safer_sign: the same of the safer answer.
        regularisation: weight of mean(less_safe^2, safer^2).
    """
    signs = functional.logsigmoid(less_safe_sign * less_safe) + functional.logsigmoid(safer_sign * safer)
    return reward_model_loss(less_safe, safer, regularisation=regularisation) - signs


def soft(logit: Float[Tensor, " pair"], generator: torch.Generator) -> Float[Tensor, " pair"]:  # noqa: ARG001
    """Return ``sigmoid(logit)``, the Bradley-Terry probability that the first side wins."""
    return torch.sigmoid(logit)


def bernoulli(logit: Float[Tensor, " pair"], generator: torch.Generator) -> Float[Tensor, " pair"]:
    """Return winners drawn with probability ``sigmoid(logit)``: 1 where the first side wins, else 0."""
    return torch.bernoulli(torch.sigmoid(logit), generator=generator)


def hard(logit: Float[Tensor, " pair"], generator: torch.Generator) -> Float[Tensor, " pair"]:  # noqa: ARG001
    """Return 1 where the logit is positive, 0 where negative, 1/2 at a tie.

    There is no finite optimum then: the policy runs towards a deterministic ranking.
    """
    return (1 + torch.sign(logit)) / 2


LOSSES = {"dpo": dpo, "ipo": ipo}
LABELS = {"soft": soft, "bernoulli": bernoulli, "hard": hard}


SMALLEST_MEAN_SQUARE = 1e-12
"""Below this mean square a root-mean-square penalty goes on as a parabola: at 0 a root has no gradient."""


def smoothed(loss: PairwiseLoss[Answers], *, smoothing: float) -> PairwiseLoss[Answers]:
    """Return ``(1 - smoothing) loss(preferred, other) + smoothing loss(other, preferred)``.

    With the DPO loss it is conservative DPO: a share ``smoothing`` of the labels is held to be wrong.
    """

    def expected(preferred: Answers, other: Answers) -> Tensor:
        return (1 - smoothing) * loss(preferred, other) + smoothing * loss(other, preferred)

    return expected


def squared_norm_penalty(squared: Float[Tensor, " pair"], *, rho: float) -> Float[Tensor, " pair"]:
    """Return ``rho squared``, what the authors' released WDPO adds to the loss of every pair.

    ``squared`` is the squared norm of the gradient of a pair's loss by its input embeddings.
    """
    return rho * squared


def root_mean_square_penalty(
    squared: Float[Tensor, " pair"], weights: Float[Tensor, " pair"], *, rho: float
) -> Float[Tensor, " pair"]:
    """Return ``rho (squared + mean) / (2 sqrt(mean))`` with ``mean`` a constant: their mean is ``rho sqrt(mean)``.

    So are its gradients: the tangent of the root at ``mean`` splits WDPO's penalty ``rho sqrt(E[squared])`` (Xu et al.
    2025, arXiv 2502.01930, Algorithm 1) into one number a pair. ``mean`` is over ``weights``, of shape ``[pair]``.
    """
    mean = ((weights * squared).sum() / weights.sum()).detach().clamp(min=SMALLEST_MEAN_SQUARE)
    return rho * (squared + mean) / (2 * mean.sqrt())


WeightFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Mutual information of (preferred, other), in units of its spread -> their weights omega, each ``[pair]``."""
ScaleFunction = Callable[[Tensor, Tensor], Tensor]
"""Weights omega of (preferred, other) -> the factor s that both are multiplied by, ``[pair]``."""


def logistic_weights(
    preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"]
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Return ``2 sigmoid(other - preferred)`` and its complement to 2: less weight for what is understood better.

    A reconstruction: the weight function of B-DPO (Zhao et al. 2026, arXiv 2603.22829) is in no source.
    """
    return 2 * torch.sigmoid(other - preferred), 2 * torch.sigmoid(preferred - other)


def norm_scale(preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """Return ``sqrt(2 / (preferred^2 + other^2))``: the two coefficients keep the Euclidean norm that DPO gives them.

    A reconstruction of what keeps the gradient's size; with ``logistic_weights`` it lies in [0.71, 1].
    """
    return torch.sqrt(2 / (preferred**2 + other**2))


def no_scale(preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:  # noqa: ARG001
    """Return 1 for every pair."""
    return torch.ones_like(preferred)


def two_sided(
    preferred: Float[Tensor, " pair"],
    other: Float[Tensor, " pair"],
    coefficients: tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]],
) -> Float[Tensor, " pair"]:
    """Return ``-log sigmoid(coefficient_w preferred - coefficient_l other)``: DPO with a coefficient a side.

    B-DPO (Zhao et al. 2026) with ``s beta omega`` as coefficients. Unequal ones see the log-ratios themselves, not
    their difference alone: a constant added to both changes the loss.
    """
    return -functional.logsigmoid(coefficients[0] * preferred - coefficients[1] * other)


SCALES = {"norm": norm_scale, "none": no_scale}


BFPO_GAIN = 3.0
BFPO_SHIFT = 0.5
"""b1 and alpha of BFPO's released program; its b3 is 1 / (b1 - 1)."""


def safedpo(
    preferred: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, beta: float, safety_margin: float
) -> Tensor:
    """Return ``-log sigmoid(beta h - (u_other - u_preferred) safety_margin)``, 0 where both answers are unsafe.

    A side is (log-ratio, unsafe flag 0 or 1). Kim et al. 2025, arXiv 2505.20065, on pairs where the safe answer of a
    safe and an unsafe one is the preferred one; pairs of two unsafe answers are dropped there, which is the 0 here.
    """
    (first, unsafe), (second, other_unsafe) = preferred, other
    losses = -functional.logsigmoid(beta * (first - second) - (other_unsafe - unsafe) * safety_margin)
    return torch.where(unsafe * other_unsafe > 0, torch.zeros_like(losses), losses)


def bfpo_target(safe: Tensor, other_safe: Tensor) -> Tensor:
    """Return ``t = b1 b3 s_w - b3 s_l - alpha`` of flags (1 is safe): 0.5, 1, -0.5, -1 at (1,1), (1,0), (0,0), (0,1).

    Zhang et al. 2024, arXiv 2408.15313, with the constants of its released program.
    """
    slope = 1 / (BFPO_GAIN - 1)
    return BFPO_GAIN * slope * safe - slope * other_safe - BFPO_SHIFT


def bfpo(preferred: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, beta: float) -> Tensor:
    """Return ``(h - t / beta)^2``; a side is (log-ratio, safe flag 0 or 1). Zhang et al. 2024, arXiv 2408.15313."""
    (first, safe), (second, other_safe) = preferred, other
    return (first - second - bfpo_target(safe, other_safe) / beta) ** 2


def modpo(
    preferred: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, beta: float, weights: tuple[float, float]
) -> Tensor:
    """Return ``-log sigmoid(R(preferred) - R(other))``, ``R = (beta log-ratio - w1 score) / w0``, shape ``[pair]``.

    A side is (log-ratio, score of the other objective, higher is better). Zhou et al. 2023, arXiv 2310.03708.
    """
    first, second = weights
    values = [(beta * ratio - second * score) / first for ratio, score in (preferred, other)]
    return -functional.logsigmoid(values[0] - values[1])


Tokens = Float[Tensor, "sequence token"]
Sequences = Float[Tensor, " sequence"]
Samples = Float[Tensor, "prompt sample"]


def token_rewards(score: Sequences, log_ratio: Tokens, mask: Tokens, *, kl: float, clip: float = 50.0) -> Tokens:
    """Return ``clip(-kl log_ratio_t + 1[t is the last token] score)``, 0 off the mask.

    The reward's stream; the cost's is ``token_rewards(cost, -log_ratio, mask, ...)``: KL is a cost there. ``log_ratio``
    is log pi_old - log pi_ref of each token; the clip is on the sum, as in the released code.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask > 0, places, -1).amax(dim=1)
    ends = (places == last[:, None]).to(log_ratio.dtype)
    return torch.where(mask > 0, (-kl * log_ratio + ends * score[:, None]).clamp(-clip, clip), 0.0)


def generalised_advantages(
    rewards: Tokens, values: Tokens, mask: Tokens, *, discount: float = 1.0, decay: float = 0.95
) -> tuple[Tokens, Tokens]:
    """Return the advantages of every token, and the returns ``advantage + value`` that a critic is fitted to.

    ``delta_t = R_t + discount V_{t+1} - V_t`` and ``A_t = delta_t + discount decay A_{t+1}``; the value after the end
    is 0 (Schulman et al. 2016, eq. 16). ``decay`` 1 gives the sum of the rewards from t on, less ``V_t``.
    """
    known = torch.where(mask > 0, values, 0.0)
    following, value_after = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    columns = []
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + discount * value_after - known[:, t]
        following = torch.where(mask[:, t] > 0, delta + discount * decay * following, 0.0)
        value_after = known[:, t]
        columns.append(following)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + known


def sequence_means(values: Tokens, mask: Tokens) -> Sequences:
    """Return each sequence's mean over its own tokens; 0 for a sequence without any."""
    return torch.where(mask > 0, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def clipped_policy_loss(
    log_probs: Tokens, old_log_probs: Tokens, advantages: Tokens, mask: Tokens, *, clip: float = 0.2
) -> Sequences:
    """Return ``-mean_t min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)`` (PPO, eq. 7); at ratio 1 it is -mean A."""
    ratio = torch.exp(torch.where(mask > 0, log_probs - old_log_probs, 0.0))
    raised = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -sequence_means(raised, mask)


def clipped_value_loss(values: Tokens, old_values: Tokens, returns: Tokens, mask: Tokens, *, clip: float) -> Sequences:
    """Return ``mean_t max((V - G)^2, (clip(V, V_old +- clip) - G)^2) / 2``; Safe RLHF's clip is 5."""
    near = torch.clamp(values, old_values - clip, old_values + clip)
    return sequence_means(torch.maximum((values - returns) ** 2, (near - returns) ** 2), mask) / 2


def leave_one_out_loss(log_probs: Samples, returns: Samples) -> Float[Tensor, " prompt"]:
    """Return ``-mean_i (G_i - mean of the other G) log pi(y_i)``, sums over tokens of two or more samples a prompt."""
    samples = returns.shape[1]
    others = (returns.sum(dim=1, keepdim=True) - returns) / (samples - 1)
    return -((returns - others).detach() * log_probs).mean(dim=1)
