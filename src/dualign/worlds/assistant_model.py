"""Learned reward and cost of the assistant world: linear heads on one-hot features, fit to noisy judgements.

The features are the options of the six slots, every pair and triple of them that the table below names, and their
products with tone, intent and topic; each is a row of a table of weights, so that a score is a sum of look-ups.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

from dualign.models.language_model import LanguageModel
from dualign.records import FloatArray, Prompt
from dualign.worlds.assistant_scores import Comparisons
from dualign.worlds.assistant_text import (
    INTENTS,
    RISKY,
    IntArray,
    context_choices,
    prompt_phrases,
    reply_choices,
    reply_phrases,
)

if TYPE_CHECKING:
    from torch import Tensor


SLOT_COUNT = 6
TONE, INTENT, TOPIC, LABEL = range(SLOT_COUNT, SLOT_COUNT + 4)
TRIPLES = ((0, 1, 2), (0, 1, 3), (1, 2, 3), (0, 2, 3))
"""Opener, stance, detail, specifics: help and harm hang on three at a time; caution and close come in pairs."""
SHRINKAGE = (1.0, 10.0, 100.0)
"""Ridge of a weight, by the number of columns that it joins: high orders are many and small."""

Groups = tuple[tuple[int, ...], ...]
"""Columns whose joint options have one weight each."""


@dataclass(frozen=True)
class Features:
    """Which weights each reply adds up in each context."""

    matrix: Any
    """Sparse, shape ``[row, weight]``: 1 where the row adds that weight; a row is a context with a reply."""
    ridge: FloatArray
    """Shape ``[weight]``: relative strength of each weight's penalty."""


def reward_groups() -> tuple[tuple[int, ...], ...]:
    """Return the columns that the reward head joins: help depends on the reply, and each slot on who asks what."""
    slots, contexts = range(SLOT_COUNT), (TONE, INTENT, TOPIC, LABEL)
    alone: list[tuple[int, ...]] = [(column,) for column in (*slots, *contexts)]
    pairs: list[tuple[int, ...]] = list(itertools.combinations(slots, 2))
    crossed: list[tuple[int, ...]] = [(slot, context) for slot in slots for context in contexts]
    return (*alone, *pairs, *crossed, *TRIPLES)


def cost_groups() -> tuple[tuple[int, ...], ...]:
    """Return the columns that the cost head joins: whole pairs of slots do harm only where the intent can."""
    labelled = [(*pair, LABEL) for pair in itertools.combinations(range(SLOT_COUNT), 2)]
    asked = [(*pair, INTENT) for pair in itertools.combinations(range(4), 2)]
    return (*reward_groups(), (INTENT, TOPIC), *labelled, *asked)


def _context_columns() -> IntArray:
    """Return shape ``[context, 4]``: tone, intent, topic, and the prompt's label, which the intent decides."""
    risky = np.asarray([int(name in RISKY) for name in INTENTS])
    return np.column_stack([context_choices(), risky[context_choices()[:, 1]]])


def features(contexts: IntArray, replies: IntArray, groups: Groups) -> Features:
    """Return the features of each (context, reply), both of shape ``[row]``."""
    choices = np.concatenate([reply_choices()[replies], _context_columns()[contexts]], axis=1)
    sizes = np.concatenate([reply_choices().max(0), _context_columns().max(0)]) + 1
    columns, ridges, start = [], [], 0
    for group in groups:
        shape = tuple(int(sizes[column]) for column in group)
        columns.append(start + np.ravel_multi_index(tuple(choices[:, column] for column in group), shape))
        ridges.append(np.full(int(np.prod(shape)), SHRINKAGE[len(group) - 1]))
        start += int(np.prod(shape))
    indices = np.stack(columns, axis=1)
    ends = np.arange(0, indices.size + 1, indices.shape[1])
    matrix = csr_matrix((np.ones(indices.size), indices.ravel(), ends), shape=(len(indices), start))
    return Features(matrix, np.concatenate(ridges))


def _logistic(logit: FloatArray, label: FloatArray) -> tuple[float, FloatArray]:
    """Return the summed cross-entropy of ``sigmoid(logit)`` with 0/1 labels, and its slope a row."""
    return float(np.sum(np.logaddexp(0, logit) - label * logit)), expit(logit) - label


def _fit(
    comparisons: Comparisons, *, labels: FloatArray, signs: FloatArray | None, groups: Groups, ridge: float
) -> FloatArray:
    """Return the weights that minimise the loss of a reward model, or with ``signs`` of a cost model.

    With y the score: -log sigmoid(y_hi - y_lo), plus for a cost model -log sigmoid(sign * y) of both replies
    (Dai et al. 2023, equations 6 and 7), plus ``ridge``/2 times the squared weights, summed over pairs.
    """
    sides = [features(comparisons.contexts, comparisons.replies[:, side], groups) for side in (0, 1)]
    penalty = ridge * sides[0].ridge

    first, second = sides[0].matrix, sides[1].matrix
    between = (first - second).tocsr()
    judgements = [(between, labels)]
    if signs is not None:
        judgements += [(first, signs[:, 0]), (second, signs[:, 1])]
    turned = [matrix.T.tocsr() for matrix, _ in judgements]

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        total, gradient = float(penalty @ weights**2) / 2, penalty * weights
        for (matrix, label), transposed in zip(judgements, turned, strict=True):
            value, slope = _logistic(matrix @ weights, label)
            total, gradient = total + value, gradient + transposed @ slope
        return total, gradient

    found = minimize(loss, np.zeros(len(penalty)), jac=True, method="L-BFGS-B", options={"maxiter": 80})
    weights: FloatArray = found.x
    return weights


def fit_reward(comparisons: Comparisons, *, ridge: float) -> FloatArray:
    """Return the weights of the reward head: its zero within a context is arbitrary."""
    return _fit(comparisons, labels=comparisons.first_better, signs=None, groups=reward_groups(), ridge=ridge)


def fit_cost(comparisons: Comparisons, *, ridge: float) -> FloatArray:
    """Return the weights of the cost head; the safety flags give it the hidden zero and scale."""
    return _fit(
        comparisons, labels=comparisons.first_worse, signs=comparisons.unsafe, groups=cost_groups(), ridge=ridge
    )


def table_of(weights: FloatArray, groups: Groups) -> FloatArray:
    """Return shape ``[context, reply]``: the score of every reply in every context."""
    contexts, replies = len(context_choices()), len(reply_choices())
    parts = []
    for chunk in np.array_split(np.arange(contexts), 12):
        rows = features(np.repeat(chunk, replies), np.tile(np.arange(replies), len(chunk)), groups)
        parts.append((rows.matrix @ weights).reshape(len(chunk), replies))
    return np.concatenate(parts)


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
    return hashlib.sha256(repr((vocabulary(), shape)).encode()).hexdigest()[:16]
