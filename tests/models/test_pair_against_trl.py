"""Our loss and gradients are those of TRL's DPOTrainer on the same batch."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dualign.maths.losses import dpo, hard
from dualign.models.pair_store import stored_groups
from dualign.protocols import Objective, Policy
from engine_parts import EOS, PAD, VOCABULARY, backend, groups, tiny_llama
from engine_parts import language_model as wrapped

BETA = 0.4


def trl_trainer(model, folder):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "</s>": EOS, "<s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    rows = datasets.Dataset.from_list([{"prompt": "w3", "chosen": " w4", "rejected": " w5"}] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = trl.DPOConfig(
            output_dir=str(folder), beta=BETA, use_cpu=True, bf16=False, report_to=[], disable_dropout=True,
            gradient_checkpointing=False, max_length=None,
        )  # fmt: skip
        return trl.DPOTrainer(model, ref_model=tiny_llama(seed=1), args=args, train_dataset=rows, processing_class=fast)


def in_float64(model):
    """TRL's chunked output head works in float32; its loss is compared to 1e-10 on the model's plain logits."""

    def forward(input_ids, attention_mask, labels, **_):
        table = torch.log_softmax(model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1], -1)
        kept = labels[:, 1:] != -100
        found = table.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0].masked_fill(~kept, 0)
        nothing = torch.zeros_like(found)
        return SimpleNamespace(log_probs=found, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

    return forward


@pytest.mark.slow
def test_loss_is_that_of_trl(tmp_path, monkeypatch) -> None:
    made = groups(4, 2)
    model = wrapped()
    stored = stored_groups(model, made)
    reference = backend(wrapped(tiny_llama(seed=1)), tmp_path / "r").log_probs(Policy("other"), made)
    objective = Objective(lambda a, b: dpo(a.log_ratio, b.log_ratio, beta=BETA), hard, np.zeros(1), BETA, name="hard")
    machine = backend(model, tmp_path, adapter="full", max_steps=1, per_device_train_batch_size=4, learning_rate=1e-9)
    monkeypatch.setattr(machine, "_log_probs", lambda policy, store: reference)
    policy = machine.fit(made, objective=objective, reference=Policy("other"), start=None, seed=0, name="p")
    row = policy.report.history[0]

    theirs = tiny_llama()
    trainer = trl_trainer(theirs, tmp_path / "trl")
    examples = []
    for group in stored:
        best = int(np.argmax(group.reward))
        tokens = [list(group.responses[group.index[k]]) for k in (best, 1 - best)]
        examples.append({"prompt_ids": list(group.prompt), "chosen_ids": tokens[0], "rejected_ids": tokens[1]})
    batch = trainer.data_collator(examples)
    trainer.ref_model = in_float64(trainer.ref_model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = trainer.compute_loss(in_float64(trainer.model), batch)
    trainer.accelerator.backward(loss)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trainer.model.parameters()]))
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-10)
    assert row["gradient_norm"] == pytest.approx(norm.item(), rel=1e-9)
