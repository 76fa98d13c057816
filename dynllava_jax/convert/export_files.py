"""The small files of an exported folder: configs, tokenizer, processor.

The source's own files are kept byte for byte as long as they still describe the model; otherwise their keys are
overruled by what the model is now.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from dynllava_jax.config.hf import from_hf, to_hf
from dynllava_jax.config.hf_llava import IMAGE_TOKEN, processor_files, to_llava_hf
from dynllava_jax.config.hf_vision import image_prep_to_hf, vision_to_hf
from dynllava_jax.config.json_file import is_whole, parse_object, wrong
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.convert.tower import FOLDER
from dynllava_jax.data.tokenizer import FILES as TOKENIZER_FILES
from dynllava_jax.errors import InputError

Files = Mapping[str, bytes]

_CONFIG, _PREPROCESSOR, _PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
_TOKENIZER = "tokenizer_config.json of the checkpoint"
_MULTIPLE = 64
"""Rows of an embedding are rounded up to this, as LLaVA's own scripts do."""


def official(config: ModelConfig, stored: Files, *, same_family: bool, apart: bool) -> dict[str, bytes]:
    """Files of the official layout. `stored`: what the checkpoint carries; `apart`: the tower has its own folder."""
    own = _json(stored, _CONFIG) if same_family else None
    tower = (own or {}).get("mm_vision_tower") or f"./{FOLDER}"
    made = to_hf(config, tower)
    if config.sparsity == config.sparsity.dense():
        # The official code builds predictors, or fails, wherever it finds a sparse_config.
        made |= {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "sparse_config": None}
    files = {name: data for name, data in stored.items() if "/" not in name and _fits(name, same_family)}
    files[_CONFIG] = _config_bytes(config, stored, own, made)
    if apart:
        files[f"{FOLDER}/{_CONFIG}"] = stored.get(f"{FOLDER}/{_CONFIG}") or _bytes(vision_to_hf(config.vision))
        prepared = stored.get(f"{FOLDER}/{_PREPROCESSOR}") or stored.get(_PREPROCESSOR)
        files[f"{FOLDER}/{_PREPROCESSOR}"] = prepared or _bytes(image_prep_to_hf(config.image_prep))
    return files


def llava_hf(
    config: ModelConfig, stored: Files, *, same_family: bool, free: int | None = None
) -> tuple[dict[str, bytes], int]:
    """Files of the llava-hf layout, and the rows of its embedding, in which the image token has one.

    `free`: the first id that the tokenizer has no token for; None: no tokenizer is known, so the first without a row.
    """
    own = _json(stored, _CONFIG) if same_family else None
    files = {name: data for name, data in stored.items() if "/" not in name and _fits(name, same_family)}
    image_token = (own or {}).get("image_token_index", (own or {}).get("image_token_id"))
    rows = config.decoder.vocab_size
    if image_token is None:
        tokenizer, image_token = _with_image_token(stored, rows if free is None else free)
        files |= tokenizer
        if image_token >= rows:
            rows = -(-(image_token + 1) // _MULTIPLE) * _MULTIPLE
    made = to_llava_hf(config, image_token=image_token, vocab_size=rows)
    files[_CONFIG] = _config_bytes(config, stored, own, made)
    if _PREPROCESSOR not in files and _PROCESSOR not in files:
        files |= {name: _bytes(content) for name, content in processor_files(config).items()}
    return files, rows


def _fits(name: str, same_family: bool) -> bool:
    """Tokenizer files go anywhere; a processor's describe one family."""
    return same_family or name in TOKENIZER_FILES or name == "generation_config.json"


def _config_bytes(config: ModelConfig, stored: Files, own: dict[str, Any] | None, made: dict[str, Any]) -> bytes:
    if own is None:
        return _bytes(made)
    try:
        preprocessor = _json(stored, _PREPROCESSOR) or (_json(stored, _PROCESSOR) or {}).get("image_processor")
        meant = from_hf(
            own,
            vision_to_hf(config.vision),
            preprocessor or _json(stored, f"{FOLDER}/{_PREPROCESSOR}"),
            has_head=not config.decoder.tie_embeddings,
        )
    except InputError:
        meant = None
    if meant is not None and dataclasses.replace(meant, text_prep=config.text_prep) == config:
        return stored[_CONFIG]
    return _bytes({**own, **made})


def _with_image_token(stored: Files, free: int) -> tuple[dict[str, bytes], int]:
    """The tokenizer's files with `<image>` in them, and its id: its own if it has one, else the first free one.

    An id further behind, where an embedding is padded, would do no good: `tokenizers` counts its tokens through.
    """
    settings = _json(stored, "tokenizer_config.json") or {}
    added: dict[str, Any] = settings.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise wrong(_TOKENIZER, "added_tokens_decoder", "an object", added)
    added = dict(added)
    for number, entry in added.items():
        if not number.isdecimal() or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise wrong(_TOKENIZER, f"added_tokens_decoder.{number}", "a token", entry)
    known = {entry["content"]: int(number) for number, entry in added.items()}
    for text, number in (_json(stored, "added_tokens.json") or {}).items():
        if not is_whole(number):
            raise wrong("added_tokens.json of the checkpoint", text, "a token's id", number)
        known[text] = number
    if IMAGE_TOKEN in known:
        return {}, known[IMAGE_TOKEN]
    token = max([free, *(number + 1 for number in known.values())])
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added[str(token)] = {"content": IMAGE_TOKEN, **flags}
    settings |= {
        "added_tokens_decoder": added,
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TOKEN,
        "extra_special_tokens": {"image_token": IMAGE_TOKEN},
    }
    files = {"tokenizer_config.json": _bytes(settings)}
    if (fast := _json(stored, "tokenizer.json")) is not None:
        fast["added_tokens"] = [*fast.get("added_tokens", ()), {"id": token, "content": IMAGE_TOKEN, **flags}]
        files["tokenizer.json"] = _bytes(fast)
    return files, token


def _json(files: Files, name: str) -> dict[str, Any] | None:
    return parse_object(files[name], f"{name} of the checkpoint") if name in files else None


def _bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
