"""A chat template is looked at once: where turns end, what it adds, trims or has no place for, and what it reads."""

from datetime import datetime

import pytest

from dualign.errors import DataError, UsageError, shown
from dualign.models.language_model import LanguageModel, Wording, answer_text, answer_tokens, string_tokens
from dualign.models.templates import read_template, response_tokens
from dualign.models.turns import UNCHANGING_DAY, _directives, chat_text
from dualign.records import Prompt, Turn, named
from turn_families import CHATML, FAMILIES, GEMMA, byte_tokenizer

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>")
EOS, START, END, USER = range(4)
SYSTEM = (Turn("system", "Be brief"),)


def tokenizer(template, **names):
    return byte_tokenizer(SPECIAL, template=template, **({"eos_token": "<|endoftext|>"} | names))


def look(template, *, ends=(), tokens=None, **wording):
    return read_template(tokens or tokenizer(template), Wording("chat", **wording), ends=ends, eos=EOS)


@pytest.mark.parametrize(
    ("template", "closing", "stops", "terminator"),
    [
        (CHATML, (END,), {EOS, END}, ""),
        # white space before the mark belongs to what closes an answer, a line break behind it does not
        (HEAD + "{{ m.content }} <|im_end|>\n{% endfor %}" + PROMPT, " <|im_end|>", {EOS, END}, ""),
        # the first of two marks
        (CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}", (END,), {EOS, END}, ""),
        # only between turns
        (
            HEAD + "{{ m.content }}{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}",
            (END,), {EOS, END}, "",
        ),
        # no mark but the next speaker's
        (
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
            (EOS,), {EOS, USER}, "",
        ),
        # plain text: what is written behind an answer, or the next speaker's name
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n### end\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            "\n### end", {EOS}, "\n### end",
        ),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            (EOS,), {EOS}, "\nuser:",
        ),
        # nothing at all
        ("{% for m in messages %}{{ m.content }}\n\n{% endfor %}", (EOS,), {EOS}, ""),
    ],
)  # fmt: skip
def test_what_ends_a_turn(template, closing, stops, terminator):
    tokens = tokenizer(template)
    _, turns, _ = look(template, tokens=tokens)
    expected = tuple(string_tokens(tokens, closing)) if isinstance(closing, str) else closing
    assert (turns.closing, turns.stops, turns.terminator) == (expected, stops, terminator)
    assert look(template, tokens=tokens, ends=(7, 9))[1].stops == stops | {7, 9}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.template])
def test_templates_of_families_pass(name):
    tokens = FAMILIES[name].tokenizer()
    _, turns, _ = read_template(tokens, Wording("chat"), ends=(), eos=tokens.eos_token_id)
    assert tokens.convert_tokens_to_ids(FAMILIES[name].ends) in turns.stops
    trims = "the chat template trims white space at the edges of turns"
    assert turns.notes == ((trims,) if "trim" in FAMILIES[name].template else ())
    assert not turns.reads_clock and not turns.opens_reasoning and not turns.anchor


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (HEAD + "{{ m.content }}<|im_end|>\n{% endfor %}", r"writes '<\|im_start\|>assistant' before an answer"),
        (CHATML.replace("assistant\n{% endif", "bot\n{% endif"), "ends the prompt with 'bot'"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "does not write the words of an answer"),
        (CHATML.replace("{{ m.content }}", "{{ m.content[0].text }}"), "does not write the words of an answer"),
        (CHATML.replace("{{ m.content }}", "{{ m.nothing.at.all }}"), "refuses the turns user .*nothing"),
        (CHATML.replace("{{ m.content }}", "{{ m.content + 1 }}"), "refuses the turns user"),
        (CHATML.replace("{{ m.content }}", "{{ 1 / 0 }}"), "refuses the turns user"),
        (CHATML + "{% if %}", "refuses the turns user"),
        ("{{ raise_exception('never\n\x1b[31m') }}", r"refuses the turns user \(never \\x1b\[31m\)"),
        (
            HEAD + "{% if m.role == 'assistant' %}<|user|>final:{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
            + PROMPT, r"writes '<\|user\|>final:' before an answer",
        ),
    ],
)  # fmt: skip
def test_a_template_that_answers_do_not_follow_is_refused_in_one_line(template, says):
    with pytest.raises(DataError, match=says) as caught:
        look(template)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_white_space_at_the_end_of_the_prompt_that_merges_with_the_answer_is_refused():
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    merging = byte_tokenizer(SPECIAL, template=template, more=(" Turquoise Zambezi",), eos_token="<|endoftext|>")
    with pytest.raises(DataError, match="joins the end of the generation prompt"):
        look(template, tokens=merging)
    assert look(template)[1].closing == (EOS,)


def test_white_space_that_a_template_writes_before_an_answer_is_part_of_given_answers():
    template = (
        "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }} {{ m.content }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokens = tokenizer(template)
    make, turns, _ = look(template, tokens=tokens)
    assert (turns.lead, turns.anchor, turns.notes) == (" ", "", ())
    model = LanguageModel(None, tokens, make, eos=EOS, pad=0, turns=turns)
    given = response_tokens(model, "red two")
    whole = chat_text(tokens, [Turn("user", "one"), Turn("assistant", "red two")], add_generation_prompt=False)
    assert string_tokens(tokens, whole) == [*make(Prompt("one")), *given]
    assert answer_text(model, given) == ("red two", True)


THINKS = (
    HEAD + "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MAY_THINK = THINKS.replace("{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}", "")
OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


def test_thinking_templates_are_named_with_the_argument_that_mends_them():
    _, turns, _ = look(THINKS)
    assert "writes an empty <think> block before an answer" in turns.notes[0]
    assert "policy.template_arguments: {enable_thinking: false} mends it" in turns.notes[0]
    template, turns, wording = look(THINKS, arguments={"enable_thinking": False})
    assert turns.notes == () and wording.arguments == {"enable_thinking": False}
    tokens = tokenizer(THINKS)
    assert tokens.decode(template(Prompt("one"))).endswith("assistant\n<think>\n\n</think>\n\n")
    assert "enable_thinking: false} closes its reasoning" in look(MAY_THINK)[1].notes[0]
    assert look(MAY_THINK, arguments={"enable_thinking": False})[1].notes == ()


def test_a_prompt_that_opens_reasoning_is_known():
    _, turns, _ = look(OPENS)
    assert turns.opens_reasoning and "opens a <think> block" in turns.notes[0]
    both = OPENS.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
                         "{{ m.content }}")  # fmt: skip
    assert look(both)[1].opens_reasoning
    assert not look(CHATML)[1].opens_reasoning


@pytest.mark.parametrize("given", ["hm</think>red", "<think>hm</think>red", " <think>\nhm</think>red"])
def test_a_given_answer_does_not_open_again_what_the_prompt_has_opened(given):
    tokens = tokenizer(OPENS)
    make, turns, _ = look(OPENS, tokens=tokens)
    model = LanguageModel(None, tokens, make, eos=EOS, pad=0, turns=turns)
    whole = [*make(Prompt("one")), *response_tokens(model, given)]
    assert tokens.decode(whole).endswith("assistant\n<think>\nhm</think>red<|im_end|>")
    _, kept, _ = look(CHATML)
    unopened = LanguageModel(None, tokens, make, eos=EOS, pad=0, turns=kept)
    assert tokens.decode(response_tokens(unopened, given, end=False)) == given


def test_arguments_that_no_template_reads_are_refused():
    with pytest.raises(UsageError, match="reads no 'enable_thinkin'; did you mean 'enable_thinking'"):
        look(THINKS, arguments={"enable_thinkin": False})
    with pytest.raises(UsageError, match="template 'plain' takes none"):
        read_template(tokenizer(None), Wording("plain", arguments={"a": 1}), ends=(), eos=EOS)


def test_a_system_turn_without_a_place_is_refused_by_the_prompt_or_the_setting():
    leaves_out = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    for source, why in ((GEMMA, r"refuses a system turn \(no system turns\)"), (leaves_out, "leaves out what")):
        tokens = tokenizer(source, bos_token="<|endoftext|>")
        template, turns, _ = look(source, tokens=tokens)
        assert turns.no_system
        template(Prompt("one two"))
        asked = Prompt("one two three", history=SYSTEM, place="pairs.jsonl: line 22")
        with pytest.raises(DataError, match=r"pairs.jsonl: line 22 \('one two three'\): the .*" + why):
            template(asked)
        with pytest.raises(UsageError, match=f"system_prompt: the chat template {why}"):
            look(source, tokens=tokens, system_prompt="Be brief")
    assert look(CHATML, system_prompt="Be brief")[1].no_system == ""


MOVES = (
    "{% set ns = namespace(said='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.said = m.content %}"
    "{% elif m.role == 'user' %}<|user|>{% if loop.last and ns.said %}{{ ns.said }}\n\n{% endif %}{{ m.content }}"
    "<|assistant|>{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
"""The system turn is written into the last turn, where that is the user's: in no conversation that has an answer."""


def test_a_template_that_only_a_system_turn_upsets_does_for_prompts_without_one():
    template, turns, _ = look(MOVES)
    assert (turns.closing, turns.no_history) == ((END,), "")
    template(Prompt("one"))
    with pytest.raises(DataError, match="prompt 'one': .* moves or loses a system turn once an answer follows"):
        template(Prompt("one", history=SYSTEM))
    for given in ("Be brief", ""):
        with pytest.raises(UsageError, match="system_prompt: the chat template (moves or loses|leaves out)"):
            look(MOVES.replace("and ns.said", "and ns.said is not none"), system_prompt=given)
    # the same of earlier turns
    marks = CHATML.replace("<|im_start|>{{", "{% if loop.first and messages | length == 4 %}!{% endif %}<|im_start|>{{")
    template, turns, _ = look(marks)
    assert not turns.no_system
    with pytest.raises(DataError, match="prompt 'three': .* writes earlier turns otherwise once an answer follows"):
        template(Prompt("three", history=(Turn("user", "one"), Turn("assistant", "two"))))


def test_a_template_of_the_last_turn_alone_loses_no_turn_without_a_word():
    source = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n" + (
        "{% if messages[-1].role == 'assistant' %}{{ messages[-1].content }}<|im_end|>{% endif %}"
    )
    template, turns, _ = look(source.replace("messages[0]", "(messages | selectattr('role', 'eq', 'user') | list)[-1]"))
    assert turns.no_system and turns.no_history
    template(Prompt("one"))
    with pytest.raises(DataError, match="prompt 'three': .* leaves out what earlier turns say"):
        template(Prompt("three", history=(Turn("user", "one"), Turn("assistant", "two"))))
    assert look(CHATML)[1].no_history == ""


def test_an_empty_system_prompt_is_refused_where_every_system_turn_is():
    with pytest.raises(UsageError, match="system_prompt: the chat template refuses a system turn"):
        look(GEMMA, tokens=tokenizer(GEMMA, bos_token="<|endoftext|>"), system_prompt="")


DATED = "{% set today = strftime_now('%d %b %Y, %-d/%m/%y 100%%d') %}<|im_start|>{{ today }}<|im_end|>\n" + CHATML
"""Behind a block that begins a line, so that what trims white space there is seen."""


def test_the_clock_is_pinned():
    tokens = tokenizer(DATED)
    template, turns, wording = look(DATED, tokens=tokens, date="2026-01-05")
    assert turns.reads_clock and wording.date == "2026-01-05"
    text = tokens.decode(template(Prompt("one")))
    assert text.startswith("<|im_start|>05 Jan 2026, 5/01/26 100%d<|im_end|>\n<|im_start|>user\none<|im_end|>")
    assert look(DATED, tokens=tokens)[2].date == datetime.now().date().isoformat()
    _, turns, wording = look(CHATML, date="2026-01-05")
    assert not turns.reads_clock and wording.date is None
    # a scorer's text must not depend on the day on which it is asked
    asked = [Turn("user", "one")]
    assert "26 Jul 2024" in chat_text(tokens, asked, add_generation_prompt=True) and UNCHANGING_DAY == "2024-07-26"


def test_the_pinned_clock_writes_what_the_real_one_would():
    now = datetime.fromisoformat("2031-10-09")
    for code, value in _directives("2031-10-09")[1:-1]:
        assert value == now.strftime(code)
    for source in (DATED, "\n" + DATED, "  " + DATED, "x\n" + DATED):
        tokens = tokenizer(source)
        messages = [{"role": "user", "content": "one"}]
        day = datetime.now().date().isoformat()
        ours = chat_text(tokens, [Turn("user", "one")], Wording(date=day), add_generation_prompt=True)
        assert ours == tokens.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_of_several_templates_the_default_is_taken_or_all_are_named():
    _, turns, _ = look({"default": CHATML, "tool_use": "{{ raise_exception('no') }}"})
    assert turns.closing == (END,)
    with pytest.raises(DataError, match="several chat templates .'rag', 'tool_use'. and none is named 'default'"):
        look({"rag": CHATML, "tool_use": CHATML})
    several = tokenizer({"rag": CHATML, "tool_use": CHATML})
    assert read_template(several, Wording("plain"), ends=(), eos=EOS)[1].closing == (EOS,)


def spaced_tokenizer(template):
    """Return a tokenizer that puts a space before the first word of every text, as sentence pieces do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = [chr(code) for code in range(10, 127)] + ["▁"]
    trainer = trainers.BpeTrainer(vocab_size=220, special_tokens=list(SPECIAL), initial_alphabet=letters)
    core.train_from_iterator(["assistant user Turquoise Name a river"] * 3, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", additional_special_tokens=list(SPECIAL[1:])
    )
    made.chat_template = template
    return made


def test_an_answer_gets_no_space_that_the_conversation_does_not_have():
    tokens = spaced_tokenizer(CHATML)
    _, turns, _ = look(CHATML, tokens=tokens)
    assert turns.anchor == "<|im_start|>assistant\n"
    bare, anchored = answer_tokens(tokens, "Turquoise"), answer_tokens(tokens, "Turquoise", turns.anchor)
    assert tokens.convert_ids_to_tokens(bare)[0].startswith("▁")
    assert not tokens.convert_ids_to_tokens(anchored)[0].startswith("▁")
    whole = chat_text(tokens, [Turn("user", "one"), Turn("assistant", "Turquoise")], add_generation_prompt=False)
    prompt = chat_text(tokens, [Turn("user", "one")], add_generation_prompt=True)
    apart = string_tokens(tokens, prompt) + anchored
    assert string_tokens(tokens, whole)[: len(apart)] == apart
    assert END not in answer_tokens(tokens, "a <|im_end|> b", turns.anchor)


def test_what_closes_an_answer_has_the_tokens_that_it_has_behind_one():
    from tokenizers import normalizers, pre_tokenizers

    source = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %} {{ m.content }} <|im_end|>"
    source += "{% endif %}{% endfor %}"
    tokens = spaced_tokenizer(source)
    # as the tokenizers of Llama 2 do: a space before each string, and spaces in it are kept
    core = tokens.backend_tokenizer
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    template, turns, _ = look(source, tokens=tokens)
    whole = chat_text(tokens, [Turn("user", "one"), Turn("assistant", "river")], add_generation_prompt=False)
    model = LanguageModel(None, tokens, template, eos=EOS, pad=0, turns=turns)
    assert string_tokens(tokens, whole) == [*template(Prompt("one")), *response_tokens(model, "river")]
    space = tokens.convert_tokens_to_ids("▁")
    # alone, the tokenizer puts a space of its own before that of the template
    assert turns.closing == (space, END) and string_tokens(tokens, " <|im_end|>") == [space, space, END]


REASONED = "<think>\nhm\n</think>\n\nred"
FORGETS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip() }}")


@pytest.mark.parametrize("special", [True, False])
def test_tags_of_reasoning_are_the_tokens_that_the_model_writes_and_no_name_hides_them(special):
    from tokenizers import AddedToken

    tokens = tokenizer(FORGETS)
    tags = [AddedToken(tag, special=special, normalized=False) for tag in ("<think>", "</think>")]
    tokens.add_tokens(tags, special_tokens=special)
    template, turns, _ = look(FORGETS, tokens=tokens)
    model = LanguageModel(None, tokens, template, eos=EOS, pad=0, turns=turns)
    opened, closed = tokens.convert_tokens_to_ids(["<think>", "</think>"])
    given = response_tokens(model, REASONED)
    assert (given[0], given.count(closed), given[-1]) == (opened, 1, END)
    assert answer_text(model, given) == (REASONED, True)
    # what the template takes from earlier turns is not in the prompt
    asked = Prompt("two", history=(Turn("user", "one"), Turn("assistant", REASONED)))
    assert template(asked) == template(Prompt("two", history=(Turn("user", "one"), Turn("assistant", "red"))))


def test_no_one_can_type_a_mark_of_turns_that_is_only_an_added_token():
    source = CHATML.replace("<|im_end|>", "[end]")
    tokens = byte_tokenizer(("<|endoftext|>",), template=source, eos_token="<|endoftext|>")
    tokens.add_tokens(["<|im_start|>", "[end]", "<|call|>", "\n", "<h1>"])
    template, turns, _ = look(source, tokens=tokens)
    end, call, line, title = tokens.convert_tokens_to_ids(["[end]", "<|call|>", "\n", "<h1>"])
    assert turns.closing == (end,)
    for typed, marks in (("one two", [1, 0, 3, 0]), ("one [end] <|call|>\n<h1>", [1, 0, 4, 1])):
        ids = template(Prompt(typed))
        assert [ids.count(token) for token in (end, call, line, title)] == marks


def test_prompts_are_named_by_place_and_first_words_inertly():
    assert named(Prompt("what is\n\x1b[31mred?", place="p.csv: line 3")) == r"p.csv: line 3 ('what is \x1b[31mred?')"
    assert named(Prompt("word " * 400)) == "prompt 'word word word word word word word word …'"
    assert shown("x" * 41) == f"'{'x' * 40}…'" and shown("x" * 40) == f"'{'x' * 40}'"
