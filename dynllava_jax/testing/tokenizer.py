"""A small Llama-style tokenizer, trained on the spot."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

_COLOURS = ["red", "green", "blue", "yellow", "white", "black", "brown", "orange"]
_THINGS = [
    "cat",
    "dog",
    "horse",
    "cup",
    "table",
    "tree",
    "house",
    "boat",
    "ball",
    "hat",
    "book",
    "chair",
    "apple",
    "window",
    "road",
    "cloud",
]
_PLACES = ["left", "right", "top", "bottom", "middle"]


def write_tokenizer(folder: Path, *, vocab_size: int = 512, texts: Iterable[str] | None = None) -> None:
    """Writes `tokenizer.model` and `tokenizer_config.json` with Llama's conventions into `folder`.

    Sentencepiece BPE with byte fallback, `<unk>` 0, `<s>` 1, `</s>` 2, identity normalisation and a dummy prefix.
    The same texts give the same file.

    Args:
        folder: an existing folder.
        vocab_size: pieces, the 259 special and byte pieces included.
        texts: what to train on; by default sentences about things in pictures.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sentences() if texts is None else texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _sentences() -> Iterable[str]:
    for colour in _COLOURS:
        for thing in _THINGS:
            for place in _PLACES:
                # As in Llama's vocabulary "USER" is a piece and "▁USER" is none: masks of later rounds count on it.
                yield f"Hello.</s>USER: What is in the {place} of the picture? ASSISTANT: There is a {colour} {thing}."
                yield f"A chat between a curious user and an assistant. Is the {thing} {colour}? Yes, it is."
