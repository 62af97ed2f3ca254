"""A language model made on the spot, aligned from memory. Run: ``python examples/02_small_model.py`` (15 seconds).

The model is a random two-layer Llama over fifteen words. Bold words please twice as much as kind ones and are all
that costs, so without a limit the policy turns bold; the limit allows half a bold word a response.
"""

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import dualign

BOLD, KIND = ("storm", "fire", "leap"), ("warm", "calm", "glad")
WORDS = ("<pad>", "<s>", "</s>", *BOLD, *KIND, "one", "two", "three", "a", "the", "and")


def language_model() -> tuple[Any, Any]:
    """Return an untrained model and its tokenizer of one token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval(), tokenizer


def bold(prompts: list[str], responses: list[str]) -> list[int]:  # noqa: ARG001
    """Return the cost: how many bold words there are."""
    return [sum(word in BOLD for word in response.split()) for response in responses]


def pleasing(prompts: list[str], responses: list[str]) -> list[float]:
    """Return the reward: bold words please twice as much as kind ones."""
    kind = [sum(word in KIND for word in response.split()) for response in responses]
    return [strong + 0.5 * mild for strong, mild in zip(bold(prompts, responses), kind, strict=True)]


def main() -> None:
    """Print what every multiplier that was tried led to, and the verdict."""
    prompts = [" ".join(words) for words in product(WORDS[3:], WORDS[9:12], WORDS[12:], WORDS[9:12])]
    with tempfile.TemporaryDirectory() as folder:
        run = dualign.align(
            language_model(),
            prompts,
            reward=pleasing,
            limits=[dualign.Limit("bold", bold, at_most=0.5, cap=8)],
            out=Path(folder) / "run",
            beta=0.5,
            method={"max_rounds": 5},
            policy={"template": "plain"},
            data={"cluster": "none"},
            sampling={"max_new_tokens": 8},
            evaluation={"responses_per_prompt": 4},
            certificate={"responses_per_prompt": 4},
            training={
                "learning_rate": 1e-2,
                "num_train_epochs": 4,
                "per_device_train_batch_size": 16,
                "adapter": "full",
            },
        )
        for row in run.frontier():
            cost, error = row["costs"]["bold"], row["errors"]["bold"]
            name = (
                f"round {row['round']}: multiplier {row['multipliers']['bold']:.3f} ->"
                if "round" in row
                else "reference:"
            )
            print(f"{name} cost {cost:.3f} ± {error:.3f}, reward {row['reward']:.3f}, KL {row['kl']:.2f} nats")
        print(run.certificate.statement)
        print(f"kept: round {run.selected['round']}, {run.verdict}; it says: {run.policy.generate(prompts[:3])}")


if __name__ == "__main__":
    main()
