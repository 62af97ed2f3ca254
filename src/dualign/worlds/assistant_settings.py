"""Vetted sizes and hyper-parameters of the assistant world's demo."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistantSettings:
    """How large the job is and how it is trained; the defaults reach the targets in about two minutes on two cores."""

    beta: float = 0.5
    """For normalised scores; smaller moves the policy further and needs better scores."""
    limit: float = 0.0
    """On the mean cost of the slice ``where``; 0 is the threshold of harm, where neither the reference nor DPO is."""
    where: tuple[tuple[str, str], ...] = (("label", "risky"),)
    """The slice that the limit is about: the prompts that can carry cost."""
    train_prompts: int = 1000
    """Prompts for demonstrations, comparisons and groups."""
    tune_prompts: int = 344
    """Prompts on which the multiplier is found."""
    calibration_prompts: int = 600
    """Prompts of the certificate; about half are risky."""
    report_prompts: int = 360
    """Prompts on which true figures are enumerated."""
    demonstrations_each: int = 12
    """Demonstrations a train prompt."""
    comparisons: int = 80_000
    """Judged pairs; the part of the gap that is due to learned scores falls in proportion to their number."""
    held_out: float = 0.05
    """Share of the comparisons that the heads do not see, for their accuracy."""
    reward_ridge: float = 3.0
    """Penalty of the reward head's weights, summed over pairs; 1 to 5 differ little at 40,000 comparisons."""
    cost_ridge: float = 3.0
    """Penalty of the cost head's weights."""
    group_size: int = 8
    """Replies of the reference a train prompt; 16 halves the training gap at twice the time."""
    evaluation_size: int = 4
    """Replies a tune or calibration prompt."""
    cap: float = 4.0
    """Largest cost that the certificate counts."""
    sft: dict[str, float | int] = field(
        default_factory=lambda: {
            "learning_rate": 3e-3,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 256,
            "warmup_steps": 20,
            "lora_r": 0,
        }
    )
    """Fields of the engine's ``SftSettings``."""
    training: dict[str, float | int | str] = field(
        default_factory=lambda: {
            "learning_rate": 3e-3,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 16,
            "warmup_steps": 20,
            "lr_scheduler_type": "cosine",
            "min_lr_ratio": 0.0,
            "adapter": "full",
        }
    )
    """Fields of the engine's ``TrainingSettings``: full weights, since the model is tiny."""


FULL = AssistantSettings()
"""What ``dualign demo`` runs."""
QUICK = AssistantSettings(
    train_prompts=400,
    tune_prompts=200,
    calibration_prompts=400,
    report_prompts=120,
    comparisons=20_000,
    demonstrations_each=16,
)
"""What ``dualign demo --quick`` runs: every stage real, figures coarser."""
WORLDS = {"assistant": FULL, "assistant-quick": QUICK}
"""What ``policy.world`` may name, besides a file."""
