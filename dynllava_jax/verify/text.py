"""Case 15: conversations become token ids, labels and spans.

B batch, S sequence.
"""

import numpy as np

from dynllava_jax.data.conversation import tokenize_conversation
from dynllava_jax.data.prompt import IMAGE_MARK, tokenize_prompt
from dynllava_jax.data.records import read_record
from dynllava_jax.data.spans import IGNORE
from dynllava_jax.data.templates import get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed, spans_of
from dynllava_jax.verify.subject import Subject


def conversations(subject: Subject, case: Case) -> Computed:
    """15_preprocess_text: `data.records`, `data.conversation`, `data.prompt` and `data.spans`."""
    found = Computed()
    prep = subject.config.text_prep
    tokenizer, template = Tokenizer.load(subject.recording.checkpoint), get_template(prep.template)
    pairs = []
    for number, sentences in enumerate(case.info["conversations"]):
        images = ["not read"] * sum(sentence["value"].count(IMAGE_MARK) for sentence in sentences)
        record = read_record({"image": images, "conversations": sentences}, f"info.conversations[{number}]")
        pairs.append(tokenize_conversation(tokenizer, template, record))
        found.put(f"conv{number}.input_ids", pairs[-1].ids)
        found.put(f"conv{number}.labels", pairs[-1].labels)
    # The official batch holds ids with one place for each image; ours is made behind `expand`.
    length = min(max(len(pair.ids) for pair in pairs), prep.max_length)
    ids = np.full((len(pairs), length), tokenizer.pad_id, np.int32)
    labels = np.full((len(pairs), length), IGNORE, np.int32)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair.ids)], labels[row, : len(pair.ids)] = pair.ids[:length], pair.labels[:length]
    found.put_all("batch.", {"input_ids": ids, "labels": labels, "attention_mask": ids != tokenizer.pad_id})
    samples = [subject.sample(pair.ids[:length], pair.labels[:length], prep.max_length) for pair in pairs]
    found.info["info.input_embeds_indices"] = spans_of(samples)
    found.put("inference_prompt_ids", np.array(tokenize_prompt(tokenizer, case.info["inference_prompt"]), np.int32))
    for number, text in case.info["texts"].items():
        found.put(f"text{number}.ids", np.array(tokenizer.encode(text, add_bos=tokenizer.adds_bos), np.int32))
    return found
