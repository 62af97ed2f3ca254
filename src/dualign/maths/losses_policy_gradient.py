"""Rewards, advantages and losses of policy-gradient methods, token by token; the caller reduces over sequences.

Source: Safe RLHF (Dai et al. 2023, arXiv 2310.12773) and its released code; PPO is Schulman et al. 2017; RLOO is
Ahmadian et al. 2024. All tensors are ``[sequence, token]``; ``mask`` is 1 on response tokens, the end token included,
and 0 elsewhere; values off the mask are never read.
"""

import torch
from jaxtyping import Float
from torch import Tensor

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


def lagrangian_advantages(reward: Tokens, cost: Tokens, *, multiplier: float) -> Tokens:
    """Return ``(A_reward - multiplier A_cost) / (1 + multiplier)``: as the multiplier grows, KL counts for more."""
    return (reward - multiplier * cost) / (1 + multiplier)


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


def centred_loss(log_probs: Samples, returns: Samples) -> Float[Tensor, " prompt"]:
    """Return ``-sum_i (G_i - mean G) log pi(y_i) / (samples - 1)``: the same number, as HC-RLHF's code writes it."""
    centred = returns - returns.mean(dim=1, keepdim=True)
    return -(centred.detach() * log_probs).sum(dim=1) / (returns.shape[1] - 1)
