"""A small byte-level BPE tokenizer that merges as the large ones do, for the tests of templates and score models."""

from typing import Any

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, EOS, START, END = range(5)
CHATML = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('the user speaks first') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "BEGINNING OF CONVERSATION: USER: hello there ASSISTANT:Hello! How can I help you today? ",
    "user assistant system the answer is safe and unsafe Yes No :Hello:Hello the the and and",
    *(" Unsafe", " Safe", " Controversial") * 20,
]


def bpe_tokenizer(*, adds_bos: bool = False, **names: str) -> Any:
    """Return a tokenizer of 380 tokens; ``names`` change its special ones (``pad_token="</s>"``)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    # Punctuation may merge with what follows: where prompt and response are cut apart, the tokens then differ.
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * 5, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    given = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | names
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=CHATML,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
        **given,
    )
