"""C-DPO on a language model made on the spot. Run: ``python examples/02_small_model.py`` (about ten seconds).

The model is a random two-layer Llama over fifteen words. Bold words please twice as much as kind ones and are all
that costs, so without a limit the policy turns bold; the limit allows half a bold word a response.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dualign.maths.dual import Stopping
from dualign.maths.dual_rules import bracket
from dualign.maths.estimates import standard_error
from dualign.methods.c_dpo import c_dpo
from dualign.methods.options import Settings
from dualign.models.language_model import LanguageModel
from dualign.models.sampler import TransformersSampler
from dualign.protocols import Policy, Problem, Sampling
from dualign.records import Evaluation, Group, Prompt
from dualign.train.settings import TrainingSettings
from dualign.train.transformer import TransformerBackend

BOLD, KIND = ("storm", "fire", "leap"), ("warm", "calm", "glad")
WORDS = ("<pad>", "<s>", "</s>", *BOLD, *KIND, "one", "two", "three", "a", "the", "and")
LIMIT, BETA, SEED = 0.5, 0.5, 0


def language_model() -> LanguageModel:
    """Return an untrained model and its tokenizer of one token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config).eval()
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        template=lambda prompt: [1, *tokenizer(prompt.text, add_special_tokens=False)["input_ids"]],
        eos=2,
        pad=0,
        max_prompt_tokens=8,
        max_response_tokens=8,
        revision="example-02",
    )


def scores(text: str) -> tuple[float, float]:
    """Return reward and cost of a response."""
    words = text.split()
    bold, kind = sum(word in BOLD for word in words), sum(word in KIND for word in words)
    return bold + 0.5 * kind, float(bold)


def scored(backend: TransformerBackend, policy: Policy, prompts: list[Prompt], n: int, seed: int) -> list[Group]:
    """Return ``n`` scored samples a prompt."""
    groups = []
    for prompt, row in zip(prompts, backend.sample(policy, prompts, n, seed), strict=True):
        table = np.array([scores(response.text) for response in row])
        groups.append(Group(prompt, tuple(row), table[:, 0], table[:, 1:]))
    return groups


def problem(backend: TransformerBackend, train: list[Prompt], tune: list[Prompt]) -> Problem:
    """Return what the method is given: groups of the reference's samples, the limit, and how to measure a policy."""
    reference = Policy("reference")

    def evaluate(policy: Policy) -> Evaluation:
        groups = scored(backend, policy, tune, 8, SEED + 1)
        known = backend.log_probs(reference, groups)
        own = [np.mean([response.log_prob for response in group.responses]) for group in groups]
        ratios = np.array(own) - [float(values.mean()) for values in known]
        reward = np.array([group.reward.mean() for group in groups])
        cost = np.array([group.costs.mean() for group in groups])
        return Evaluation(
            reward=float(reward.mean()),
            reward_error=standard_error(reward),
            costs=np.array([cost.mean()]),
            cost_errors=np.array([standard_error(cost)]),
            cost_spreads=np.array([cost.std(ddof=1)]),
            kl=float(ratios.mean()),
            kl_error=standard_error(ratios),
            n_prompts=len(groups),
        )

    groups = scored(backend, reference, train, 5, SEED)
    return Problem(backend, groups, np.array([LIMIT]), reference, evaluate, BETA, SEED)


def main() -> None:
    """Print what every multiplier that was tried led to."""
    import torch

    # A model this small has no work for a second thread.
    torch.set_num_threads(1)
    model = language_model()
    prompts = [Prompt(f"{a} {b} {c}") for a in WORDS[3:] for b in WORDS[9:12] for c in WORDS[12:]]
    training = TrainingSettings(learning_rate=1e-2, num_train_epochs=4, per_device_train_batch_size=16, adapter="full")
    with tempfile.TemporaryDirectory() as folder:
        backend = TransformerBackend(
            model,
            settings=training,
            sampler=TransformersSampler(model),
            sampling=Sampling(max_new_tokens=8, batch_size=512),
            folder=Path(folder),
        )
        asked = problem(backend, train=prompts[::2], tune=prompts[1::2])
        before = asked.evaluate(asked.reference)
        print(f"reference: cost {before.costs[0]:.3f} ± {before.cost_errors[0]:.3f}, reward {before.reward:.3f}")
        iterates = []
        for found in c_dpo(asked, Settings(bracket(Stopping(budget=5)), np.array([1.0]))):
            figures, slope = found.evaluation, found.policy.report.slope
            print(
                f"round {found.round}: multiplier {found.multipliers[0]:.3f} -> cost {figures.costs[0]:.3f} "
                f"± {figures.cost_errors[0]:.3f} (limit {LIMIT}), reward {figures.reward:.3f}, "
                f"KL {figures.kl:.2f} nats, slope of fit {slope:.2f}"
            )
            iterates.append(found)
    # A policy is kept when its limit holds with its error bar; measuring it where it was chosen is no certificate.
    held = [i for i in iterates if i.evaluation.costs[0] + 1.645 * i.evaluation.cost_errors[0] <= LIMIT]
    if held:
        best = max(held, key=lambda iterate: iterate.evaluation.reward)
        print(f"kept: round {best.round}, multiplier {best.multipliers[0]:.3f}")
    else:
        print("kept: none; no round met the limit with its error bar")


if __name__ == "__main__":
    main()
