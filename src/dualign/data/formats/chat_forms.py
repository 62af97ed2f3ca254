"""Pairs of a prompt and a chosen and a rejected answer, as the tools of the field write them; and single answers (KTO).

They differ in what the prompt's column is called and in whether texts or messages stand in the columns; so one reading
serves all, and each form is a row that names its columns. TRL: ``prompt``, or none. LLaMA-Factory: ``instruction`` and
``input`` (alpaca form), ``conversations`` (ShareGPT form). Axolotl: ``messages``, ``question``, ``instruction``,
``input``. OpenRLHF: ``prompt``, ``input``, ``context_messages``. OpenAI: ``input``, an object with messages.
Anthropic (HH-RLHF): two whole transcripts that should differ in the last answer alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os.path import commonprefix

from dualign.data.cells import RowError, Values, flag, given, text, unpacked
from dualign.data.preferences import NO_PROMPT, Answer, Format, PreferenceRow, Recognition, made
from dualign.data.turns import (
    LAST_ANSWER,
    check_attached,
    is_parts,
    opens_a_conversation,
    prompt_of,
    spoken,
    transcript_turns,
    turns,
)
from dualign.records import Prompt, Turn

PAIR = ("chosen", "rejected")
RESPONSES = ("chosen_response", "rejected_response")
PROMPTS = ("prompt", "context_messages", "conversations", "messages", "instruction", "question", "query", "input",
           "context")  # fmt: skip
"""Columns that are read as the prompt, the first that holds anything before the others."""
PROMPT_LIKE = {*PROMPTS, "prompts", "conversation", "dialogue", "dialog", "problem", "questions", "inputs", "user",
               "user_prompt", "user_input"}  # fmt: skip
"""Names, in lower case, beside which the words that two answers open with are no prompt."""


def holds(value: object) -> bool:
    """Return whether a cell says anything: a text that is not blank, or messages."""
    return bool(value.strip() if isinstance(value, str) else value if isinstance(value, list | Mapping) else False)


def named_prompt(rows: Sequence[Values]) -> str | None:
    """Return the column that is the prompt of these rows, or none."""
    return next((name for name in PROMPTS if any(holds(row.get(name)) for row in rows)), None)


def like_a_prompt(rows: Sequence[Values]) -> list[str]:
    """Return the columns that are called as prompts are and hold anything, or that hold conversations."""
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if _like(name, value)))


def _like(name: str, value: object) -> bool:
    named = name.strip().lower() in PROMPT_LIKE and holds(value)
    return named or (name not in (*PAIR, *RESPONSES) and opens_a_conversation(value))


def asked(values: Values, name: str) -> list[Turn]:
    """Return the conversation that a row's answers are given to: messages, or a text after its history if it has one.

    An instruction is followed by its input.

    Raises:
        RowError: no text and no messages, or another column holds what may be the prompt as well.
    """
    said = spoken(values, name, "user")
    if name == "instruction":
        said = _with_input(said, values)
    if isinstance(values.get(name), str):
        said = [*_history(values), *said]
    if name != "prompt":
        _check_alone(values, name, said)
    return said


def _with_input(said: list[Turn], values: Values) -> list[Turn]:
    """Return the instruction followed by its input on a line of its own, as LLaMA-Factory joins them."""
    given = values.get("input")
    if len(said) > 1 or not isinstance(given, str) or not given.strip():
        return said
    words = [part for part in (said[0].text, text(values, "input")) if part.strip()]
    return [Turn("user", "\n".join(words))]


def _history(values: Values) -> list[Turn]:
    """Return the turns of earlier rounds: a list of (what the user said, what was answered), or messages."""
    rounds = unpacked(values, "history")
    if not rounds:
        return []
    if opens_a_conversation(rounds):
        return turns({"history": rounds}, "history")
    if not isinstance(rounds, list) or not all(isinstance(one, list) and len(one) == 2 for one in rounds):
        raise RowError("not a text", "history is no list of [user, assistant]; what was said before is needed")
    said: list[Turn] = []
    for asked_then, answered in rounds:
        said += spoken({"history": asked_then}, "history", "user")
        said += spoken({"history": answered}, "history", "assistant")
    return said


def _check_alone(values: Values, name: str, said: Sequence[Turn]) -> None:
    """Raise the error of a row in which another column of a prompt's name holds other words."""
    own = {turn.text.strip() for turn in said}
    joined = "input" if name == "instruction" else name
    for other in PROMPTS[PROMPTS.index(name) + 1 :]:
        words = values.get(other)
        if other != joined and isinstance(words, str) and words.strip() and words.strip() not in own:
            both = f"{name!r} and {other!r} both hold a text that may be the prompt"
            raise RowError("several prompts", f"{both}; map the right one (prompt={name} or prompt={other})")


def transcripts(values: Values, said: Sequence[Turn], prompt: str | None, names: Sequence[str]) -> list[list[Turn]]:
    """Return the whole conversations of a row; answers that open with its last turns hold these already.

    Raises:
        RowError: answers that are conversations of their own and not the one of the prompt.
    """
    answers = [spoken(values, name, "assistant") for name in names]
    if all(answer[0].role == "assistant" for answer in answers):
        return [[*said, *answer] for answer in answers]
    plain = prompt is None or isinstance(values.get(prompt), str) or is_parts(values.get(prompt))
    if plain or any(answer == said for answer in answers):  # the prompt's column is one of the conversations
        return answers
    again = [_overlap(said, answer) for answer in answers]
    if said[-1].role == "user" and not any(again) and all(answer[0].role != "assistant" for answer in answers):
        raise RowError("parting transcripts", f"{' and '.join(names)} do not go on from the turns of {prompt}")
    return [[*said, *answer[shared:]] for answer, shared in zip(answers, again, strict=True)]


def _overlap(said: Sequence[Turn], answer: Sequence[Turn]) -> int:
    """Return how many of the last turns said are the first ones of an answer."""
    longest = min(len(said), len(answer))
    return next((count for count in range(longest, 0, -1) if said[-count:] == answer[:count]), 0)


def compared(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> PreferenceRow:
    """Return the row of two transcripts that differ in their last turn.

    Raises:
        RowError: they part before it, one does not end with the assistant, or their prompt is no conversation.
    """
    for transcript, name in ((chosen, "chosen"), (rejected, "rejected")):
        if transcript[-1].role != "assistant":
            raise RowError("wrong role", f"{name} ends with the role {transcript[-1].role!r}; 'assistant' is needed")
    both = list(zip(chosen[:-1], rejected[:-1], strict=False))
    shared = next((number for number, (ours, theirs) in enumerate(both) if ours != theirs), len(both))
    if shared == 0:
        raise RowError(NO_PROMPT, "chosen and rejected share no turn")
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        lengths = f"{len(chosen)} and {len(rejected)} turns"
        raise RowError("parting transcripts", f"the transcripts part at turn {shared + 1} of {lengths}")
    return made(prompt_of(chosen[:-1]), [Answer(chosen[-1].text), Answer(rejected[-1].text)], better=0)


def read_pair(values: Values, *, prompt: str | None = "prompt", names: Sequence[str] = PAIR) -> PreferenceRow:
    """Return the row of a conversation and two answers to it, the better one first."""
    said = asked(values, prompt) if prompt is not None else []
    chosen, rejected = transcripts(values, said, prompt, names)
    return compared(chosen, rejected)


def read_outputs(values: Values) -> PreferenceRow:
    """Return the row of an instruction whose outputs are a list of two, the better one first."""
    outputs = unpacked(values, "output")
    if not isinstance(outputs, list) or len(outputs) != 2:
        raise RowError("not a text", "output is no list of two answers, the better one first")
    return read_pair({**values, **dict(zip(PAIR, outputs, strict=True))}, prompt="instruction")


def read_request(values: Values) -> PreferenceRow:
    """Return the row of a request, an object that holds messages, and two answers to it, the preferred one first."""
    request = unpacked(values, "input")
    if not isinstance(request, Mapping):
        raise RowError("not a text", f"input is {given(values, 'input')}; an object with messages is needed")
    check_attached(request)
    answers = (values.get("preferred_output"), values.get("non_preferred_output"))
    return read_pair({"prompt": request.get("messages"), **dict(zip(PAIR, answers, strict=True))})


def read_judged(values: Values, *, prompt: str, answer: str | None, label: str) -> PreferenceRow:
    """Return the row of one answer and whether it is one to give (KTO); without a column the last turn is it."""
    desirable = flag(values, label)
    if answer is None:
        talk = turns(values, prompt)
    else:
        (talk,) = transcripts(values, asked(values, prompt), prompt, (answer,))
    if talk[-1].role != "assistant":
        raise RowError("wrong role", f"{answer or prompt} ends with the role {talk[-1].role!r}; 'assistant' is needed")
    return made(prompt_of(talk[:-1]), [Answer(talk[-1].text, desirable=desirable)])


def _usually(rows: Sequence[Values], name: str, kind: Callable[[object], bool]) -> bool:
    """Return whether most cells of a column that say anything are of a kind; of as many the first one decides."""
    votes = [kind(cell) for row in rows if holds(cell := row.get(name))]
    return 2 * sum(votes) > len(votes) or (bool(votes) and votes[0] and 2 * sum(votes) == len(votes))


def _talk(cell: object) -> bool:
    """Return whether a cell that says anything holds messages, and no text."""
    return not isinstance(cell, str) and not is_parts(cell)


def _whole(rows: Sequence[Values]) -> bool:
    """Return whether most answers of messages are whole conversations."""
    return _usually([row for row in rows if not isinstance(row.get("chosen"), str)], "chosen", opens_a_conversation)


def _explicit_chat(rows: Sequence[Values]) -> bool:
    """Return whether prompt or answers are messages; beside whole conversations a plain prompt only repeats them."""
    of_messages = _usually(rows, "chosen", _talk) and not _whole(rows) and named_prompt(rows) == "prompt"
    return of_messages or _usually(rows, "prompt", _talk)


def _implicit_chat(rows: Sequence[Values]) -> bool:
    """Return whether answers are messages without a prompt, or whole conversations beside a plain one."""
    name = named_prompt(rows)
    alone = name is None or (_whole(rows) and not _usually(rows, name, _talk))
    return alone and _usually(rows, "chosen", _talk)


def read_implicit(values: Values) -> PreferenceRow:
    """Return the row of two texts whose common words are the prompt.

    The prompt ends at the last space that both texts share, and the answers keep that space: cut inside a word, the
    answers would not open with a token that a model can say. Texts without spaces need a prompt of their own.

    Raises:
        RowError: a column is called as prompts are, and then what both texts open with is none.
    """
    if names := like_a_prompt([values]):
        raise RowError("several prompts", f"{names[0]!r} may be the prompt; map it (prompt={names[0]}) or rename it")
    chosen, rejected = (text(values, name) for name in PAIR)
    if chosen == rejected:
        raise RowError("identical pair", "chosen and rejected are the same text")
    length = shared_words(chosen, rejected)
    if not length:
        raise RowError(NO_PROMPT, "chosen and rejected do not open with the same words")
    return made(Prompt(chosen[:length]), [Answer(chosen[length:]), Answer(rejected[length:])], better=0)


def shared_words(first: str, second: str) -> int:
    """Return how many characters the two texts share up to the end of their last common whole word."""
    head = commonprefix([first, second])
    whole = head.rstrip()
    if whole != head:
        return len(whole)
    before = whole.rsplit(None, 1)
    return len(before[0]) if len(before) == 2 else 0


def read_transcripts(values: Values) -> PreferenceRow:
    """Return the row of two transcripts; their common turns are the prompt with its history."""
    chosen, rejected = (transcript_turns(text(values, name)) for name in PAIR)
    return compared(chosen, rejected)


def _transcripts(rows: Sequence[Values]) -> bool:
    """Return whether any row holds a transcript, and none a prompt of its own."""
    said = [row.get("chosen") for row in rows]
    marked = any(isinstance(one, str) and one.lstrip().startswith("Human:") and LAST_ANSWER in one for one in said)
    return marked and not any("prompt" in row for row in rows)


def _processed_hh(rows: Sequence[Values]) -> bool:
    """Return whether any answer is an object with a text and no role."""
    said = [unpacked(row, "chosen") for row in rows]
    return any(isinstance(one, Mapping) and "text" in one and "role" not in one for one in said)


def _processed_hh_answer(values: Values, name: str) -> Answer:
    value = values.get(name)
    if not isinstance(value, Mapping):
        raise RowError("not a text", f'{name} is {given(values, name)}; an object {{"text": ...}} is needed')
    return Answer(text({f"the text of {name}": value.get("text")}, f"the text of {name}"))


def read_processed_hh(values: Values) -> PreferenceRow:
    """Return the row of one context and its two answers."""
    answers = [_processed_hh_answer(values, name) for name in PAIR]
    return made(prompt_of(turns(values, "context")), answers, better=0)


def _pairs(
    name: str, says: str, prompt: str, *more: str, names: tuple[str, str] = PAIR, recognise: Recognition | None = None
) -> Format:
    reading = partial(read_pair, prompt=prompt, names=names)
    recognise = recognise or (lambda rows: named_prompt(rows) == prompt)
    said, options = (prompt, *names), (*more, "history")
    return Format(name, says, said, reading, recognise, options=options, texts=more, either=said)


def _judged(name: str, prompt: str, answer: str | None, label: str, *more: str) -> Format:
    kind = "conversations whose last answer is" if answer is None else "single answers,"
    said = (prompt,) if answer is None else (prompt, answer)
    return Format(
        name,
        f"{kind} labelled true (desirable) or false",
        (*said, label),
        partial(read_judged, prompt=prompt, answer=answer, label=label),
        lambda rows: named_prompt(rows) == prompt,
        options=more if answer is None else (*more, "history"),
        texts=more,
        either=said,
    )


CHAT_FORMS = (
    Format(
        "pku-processed-hh",
        "pairs after a context of turns, chosen first",
        ("context", *PAIR),
        read_processed_hh,
        _processed_hh,
    ),
    Format("hh-rlhf", "pairs of transcripts, chosen first", PAIR, read_transcripts, _transcripts, texts=PAIR),
    _pairs(
        "trl-chat-explicit", "pairs of messages after a conversation, chosen first", "prompt", recognise=_explicit_chat
    ),
    Format(
        "trl-chat-implicit",
        "pairs of conversations, chosen first; their common turns are the prompt",
        PAIR,
        partial(read_pair, prompt=None),
        _implicit_chat,
        options=("prompt",),
        either=PAIR,
    ),
    _pairs(
        "trl-plain-explicit",
        "pairs of texts after a prompt, chosen first",
        "prompt",
        recognise=lambda rows: named_prompt(rows) in ("prompt", None),
    ),
    _pairs("openrlhf-messages", "pairs after messages, chosen first", "context_messages"),
    _pairs("sharegpt-pairs", "pairs after a conversation, chosen first", "conversations"),
    _pairs("messages-pairs", "pairs after messages, chosen first", "messages"),
    _pairs("alpaca-pairs", "pairs after an instruction and its input, chosen first", "instruction", "input"),
    _pairs("argilla-pairs", "pairs of responses, the chosen one first", "instruction", "input", names=RESPONSES),
    _pairs("response-pairs", "pairs of responses, the chosen one first", "prompt", names=RESPONSES),
    _pairs("question-pairs", "pairs after a question, chosen first", "question"),
    _pairs("query-pairs", "pairs after a query, chosen first", "query"),
    _pairs("input-pairs", "pairs after an input, chosen first", "input"),
    _pairs("context-pairs", "pairs after a context, chosen first", "context"),
    Format(
        "alpaca-outputs",
        "two outputs to an instruction and its input, the better one first",
        ("instruction", "output"),
        read_outputs,
        lambda rows: any(isinstance(unpacked(row, "output"), list) for row in rows),
        options=("input", "history"),
        texts=("instruction", "input"),
    ),
    Format(
        "openai-pairs",
        "pairs of messages after those of a request, the preferred one first",
        ("input", "preferred_output", "non_preferred_output"),
        read_request,
        either=("preferred_output", "non_preferred_output"),
    ),
    # what KTO is trained on; false marks an answer that is not to be imitated
    _judged("kto", "prompt", "completion", "label"),
    _judged("kto-response", "prompt", "response", "label"),
    _judged("kto-question", "question", "completion", "label"),
    _judged("kto-input", "input", "output", "label"),
    _judged("kto-instruction", "instruction", "completion", "label", "input"),
    _judged("kto-alpaca", "instruction", "output", "kto_tag", "input"),
    _judged("kto-messages", "messages", None, "label"),
    _judged("kto-sharegpt", "conversations", None, "kto_tag"),
    Format(
        "trl-plain-implicit",
        "pairs of texts, chosen first; the words that both open with are the prompt",
        PAIR,
        read_implicit,
        either=PAIR,
    ),
)
