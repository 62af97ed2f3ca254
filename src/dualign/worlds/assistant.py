"""The assistant world: its language model, exact figures of policies, the true problem, and where a gap comes from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dualign.errors import DataError, UsageError
from dualign.hashing import digest
from dualign.maths.exact import FiniteProblem, expectations
from dualign.models.adapters import activated
from dualign.models.language_model import LanguageModel
from dualign.records import FloatArray, Prompt
from dualign.worlds.assistant_scores import (
    Comparisons,
    Heads,
    TableScorer,
    compare,
    demonstrator_log_probs,
    hidden_cost,
    hidden_reward,
)
from dualign.worlds.assistant_text import (
    SHAPE,
    AssistantSettings,
    all_prompts,
    context_numbers,
    prompt_phrases,
    reply_choices,
    reply_phrases,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dualign.protocols import Policy

PAD, BOS, EOS, TURN, UNKNOWN = "<pad>", "<bos>", "<eos>", "<reply>", "<unk>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'user' %}" + TURN + "{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
HIDDEN, LAYERS, HEADS, INTERMEDIATE = 64, 2, 4, 128
PROMPT_TOKENS, RESPONSE_TOKENS = 7, 7


def vocabulary() -> tuple[str, ...]:
    """Return the tokens in the order of their ids: five special ones, the prompts' phrases, the replies' phrases."""
    slots = tuple(phrase for slot in reply_phrases() for phrase in slot)
    return (PAD, BOS, EOS, TURN, UNKNOWN, *prompt_phrases(), *slots)


def tokenizer() -> Any:
    """Return a fast tokenizer that cuts a text into the world's phrases; a piece it does not know is ``<unk>``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    # Longest first: no phrase may be cut short by another one that begins it.
    pattern = "|".join(re.escape(word) for word in sorted(words[5:], key=len, reverse=True))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[TURN],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def grammar() -> Tensor:
    """Return the boolean mask ``[7, vocabulary]``: the phrases of each slot, then EOS."""
    words = vocabulary()
    mask = torch.zeros(RESPONSE_TOKENS, len(words), dtype=torch.bool)
    for position, phrases in enumerate(reply_phrases()):
        mask[position, [words.index(phrase) for phrase in phrases]] = True
    mask[-1, words.index(EOS)] = True
    return mask


def reply_tokens(choices: Sequence[int]) -> tuple[int, ...]:
    """Return the token ids of the reply with these options, EOS included."""
    words = vocabulary()
    phrases = [slot[choice] for slot, choice in zip(reply_phrases(), choices, strict=True)]
    return (*(words.index(phrase) for phrase in phrases), words.index(EOS))


def language_model(seed: int) -> LanguageModel:
    """Return an untrained model of under 100,000 parameters, its weights drawn from ``seed``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = vocabulary()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=words.index(PAD),
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
        attention_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    text_tokenizer = tokenizer()

    def template(prompt: Prompt) -> list[int]:
        ids: list[int] = text_tokenizer(BOS + prompt.text + TURN, add_special_tokens=False)["input_ids"]
        return ids

    return LanguageModel(
        model=model,
        tokenizer=text_tokenizer,
        template=template,
        eos=words.index(EOS),
        pad=words.index(PAD),
        max_prompt_tokens=PROMPT_TOKENS,
        max_response_tokens=RESPONSE_TOKENS,
        revision=revision(seed),
        grammar=grammar(),
    )


def revision(seed: int) -> str:
    """Return a hash of what determines the untrained weights."""
    shape = (HIDDEN, LAYERS, HEADS, INTERMEDIATE, seed)
    return digest(repr((vocabulary(), shape)))[:16]


# -- exact figures --------------------------------------------------------------------------------------------------

PROMPTS_A_CHUNK = 24
"""Prompts whose prefix trees are in memory together: 24 x 576 prefixes of 13 tokens take about 0.2 GB."""


def enumerate_log_probs(language_model: LanguageModel, policy: Policy, prompts: Sequence[Prompt]) -> FloatArray:
    """Return shape ``[prompt, reply]``: log-probability of every reply, in nats, at the model's temperature.

    Walks the tree of prefixes level by level with a shared key-value cache, so that 1,728 replies cost 789 tokens.
    """
    ids = torch.tensor([language_model.template(prompt) for prompt in prompts])
    with activated(language_model, policy) as model, torch.no_grad():
        parts = [_tree(language_model, model, chunk) for chunk in torch.split(ids, PROMPTS_A_CHUNK)]
    return np.concatenate(parts)


def _tree(language_model: LanguageModel, model: Any, ids: Tensor) -> FloatArray:
    options = _slot_tokens(language_model)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    total = torch.zeros(len(ids), 1, dtype=torch.float64)
    for slot, tokens in enumerate(options):
        logits = output.logits[:, -1, tokens].double() / language_model.temperature
        total = (total.reshape(-1, 1) + logits.log_softmax(-1)).reshape(len(ids), -1)
        if slot + 1 < len(options):
            cache = output.past_key_values
            rows = len(output.logits)
            cache.batch_repeat_interleave(len(tokens))
            following = tokens.repeat(rows)[:, None]
            output = model(input_ids=following, past_key_values=cache, use_cache=True)
    array: FloatArray = total.numpy()
    return array


def _slot_tokens(language_model: LanguageModel) -> list[Tensor]:
    """Return the tokens of each slot by option; ids rise with the option, and EOS, which is forced, adds nothing."""
    if language_model.grammar is None:
        raise DataError("assistant world: the language model has no grammar, so its replies cannot be listed")
    slots = [row.nonzero()[:, 0] for row in language_model.grammar[: len(SHAPE)]]
    if tuple(len(tokens) for tokens in slots) != SHAPE:
        raise DataError("assistant world: the grammar is that of another world")
    return slots


@dataclass(frozen=True, slots=True)
class Gap:
    """How far a policy is from the optimum: Lagrangian values at the true multiplier, in raw reward units."""

    total: float
    """L(optimum, multiplier) - L(policy, multiplier) = beta E KL(policy || optimum) >= 0."""
    scores: float
    """Part due to the scores: the same for the optimum under the scores that the run used."""
    training: float
    """The rest: margin, finite sampling, the network and its optimiser. May be negative by a little."""


def lagrangian(truth: FiniteProblem, multipliers: FloatArray, log_probs: FloatArray) -> float:
    """Return ``E[reward] - beta KL - multipliers . (E[costs] - limits)`` of a policy."""
    figures = expectations(truth, log_probs)
    return float(figures.objective - multipliers @ (figures.costs - truth.limits))


def gap(
    truth: FiniteProblem, *, multipliers: FloatArray, best: FloatArray, believed: FloatArray, policy: FloatArray
) -> Gap:
    """Return the gap of ``policy`` and its two parts.

    Args:
        truth: the problem under the hidden scores.
        multipliers: optimal ones of ``truth``, shape ``[constraint]``.
        best: log-probabilities of the optimum of ``truth``, shape ``[prompt, reply]``.
        believed: those of the optimum under the scores that the run used.
        policy: those of the policy that is judged.
    """
    top = lagrangian(truth, multipliers, best)
    total = top - lagrangian(truth, multipliers, policy)
    scores = top - lagrangian(truth, multipliers, believed)
    return Gap(total, scores, total - scores)


@dataclass(frozen=True)
class AssistantWorld:
    """The world of one seed; nothing in it is trained yet."""

    settings: AssistantSettings
    seed: int
    prompts: tuple[Prompt, ...]
    """All 2,304, shuffled by the seed; splits are the caller's."""

    @property
    def exact_scorers(self) -> dict[str, TableScorer]:
        """Return the hidden scores as scorers."""
        return {
            "reward": TableScorer("assistant-reward-exact", "reward", hidden_reward()),
            "cost": TableScorer("assistant-cost-exact", "cost", hidden_cost()),
        }

    def splits(self) -> dict[str, tuple[Prompt, ...]]:
        """Return disjoint prompts for train, tune, calibration and report, in the sizes of the settings."""
        names = ("train", "tune", "calibration", "report")
        sizes = {name: int(getattr(self.settings, f"{name}_prompts")) for name in names}
        if sum(sizes.values()) > len(self.prompts):
            raise UsageError(f"assistant world: splits need {sum(sizes.values())} prompts of {len(self.prompts)}")
        rest = iter(self.prompts)
        return {name: tuple(itertools.islice(rest, size)) for name, size in sizes.items()}

    def demonstrations(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, tuple[int, ...]]]:
        """Return what supervised fine-tuning learns from: independent draws of the demonstrators, in tokens."""
        generator, choices, examples = np.random.default_rng([self.seed, 1]), reply_choices(), []
        for prompt in prompts:
            chances = np.exp(demonstrator_log_probs(prompt))
            replies = generator.choice(len(chances), self.settings.demonstrations_each, p=chances)
            examples += [(prompt, reply_tokens(choices[reply].tolist())) for reply in replies]
        return examples

    def comparisons(self, prompts: Sequence[Prompt], log_reference: FloatArray) -> Comparisons:
        """Return judged pairs: two independent replies of the reference, ``[prompt, reply]``, to random prompts.

        About 300 prompts do: the heads share their weights over prompts, and enumerating 1,000 takes 20 seconds.
        """
        generator = np.random.default_rng([self.seed, 3])
        asked = np.sort(generator.integers(len(prompts), size=self.settings.comparisons))
        totals = np.cumsum(np.exp(log_reference), axis=1)
        draws = generator.random((len(asked), 2))
        replies = np.stack(
            [
                np.searchsorted(totals[row] / totals[row, -1], pair, side="right")
                for row, pair in zip(asked, draws, strict=True)
            ]
        )
        scores = {"reward": hidden_reward(), "cost": hidden_cost()}
        return compare(context_numbers(prompts)[asked], replies, **scores, seed=self.seed)

    def problem(
        self,
        prompts: Sequence[Prompt],
        log_reference: FloatArray,
        *,
        heads: Heads | None = None,
        beta: float,
        limit: float | None = None,
    ) -> FiniteProblem:
        """Return the finite problem of these prompts, weighed equally, in raw units.

        The limit is on the mean cost of the slice ``where``: the cost of other prompts is 0 and that of the slice is
        divided by its share.

        Args:
            prompts: some of the world's.
            log_reference: shape ``[prompt, reply]``.
            heads: learned scores; none: the hidden ones.
            beta: for raw rewards.
            limit: none: that of the settings.
        """
        contexts = context_numbers(prompts)
        inside = np.asarray([all(p.columns[key] == value for key, value in self.settings.where) for p in prompts])
        if not inside.any():
            raise DataError(f"assistant world: no prompt has {dict(self.settings.where)}; give prompts of that slice")
        reward, cost = (heads.reward.table, heads.cost.table) if heads else (hidden_reward(), hidden_cost())
        return FiniteProblem(
            log_reference - np.logaddexp.reduce(log_reference, axis=1, keepdims=True),
            reward[contexts],
            (cost[contexts] * (inside / inside.mean())[:, None])[:, :, None],
            np.full(len(prompts), 1 / len(prompts)),
            np.asarray([self.settings.limit if limit is None else limit], dtype=float),
            beta,
        )


def build_assistant_world(settings: AssistantSettings, seed: int) -> AssistantWorld:
    """Return the world of ``seed``: the same prompts and hidden scores, other orders and draws."""
    prompts = all_prompts()
    order = np.random.default_rng([seed, 0]).permutation(len(prompts))
    return AssistantWorld(settings, seed, tuple(prompts[place] for place in order))
