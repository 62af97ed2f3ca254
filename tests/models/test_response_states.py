"""Features of answers from the reference: the mean state by hand, and the same alone and among others."""

import numpy as np
import pytest
import torch

from dualign.models.pair_store import response_states
from engine_parts import groups, language_model, tiny_llama


def test_a_feature_is_the_mean_of_the_states_before_each_token() -> None:
    model, made = language_model(), groups(3)
    found = response_states(model, made, tokens_a_batch=64)
    for group, row in zip(made, found, strict=True):
        prompt = model.template(group.prompt)
        for answer, state in zip(group.responses, row, strict=True):
            with torch.no_grad():
                states = model.model.model(input_ids=torch.tensor([[*prompt, *answer.tokens]])).last_hidden_state[0]
            assert state == pytest.approx(states[len(prompt) - 1 : -1].mean(0).numpy(), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens_a_batch", [1, 40, 4096])
def test_a_feature_is_the_same_alone_and_among_others(dtype: torch.dtype, tokens_a_batch: int) -> None:
    plain = tiny_llama()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = type(plain)(plain.config).to(dtype).eval()  # with the library's own norms, which compute in float32
    model, made = language_model(plain), groups(8)
    together = response_states(model, made, tokens_a_batch=tokens_a_batch)
    for group, row in zip(made, together, strict=True):
        (alone,) = response_states(model, [group], tokens_a_batch=1)
        assert np.abs(row - alone).max() < 1e-6
