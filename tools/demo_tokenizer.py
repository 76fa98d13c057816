"""Trains the demo's tokenizer on its texts.

    python tools/demo_tokenizer.py

Writes dynllava_jax/demo/tokenizer; whoever changes the texts runs it again and takes the printed numbers over into the
preset `demo` (vocab_size, round_ids).
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import dynllava_jax.demo
from dynllava_jax.data.prompt import round_ids
from dynllava_jax.data.templates import get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.demo.dataset import Mixture, sample
from dynllava_jax.testing import write_tokenizer

FOLDER = Path(dynllava_jax.demo.__file__).parent / "tokenizer"
VOCABULARY = 1024


def texts() -> Iterable[str]:
    template = get_template("vicuna_v1")
    for index in range(3000):
        text = template.render(sample(index, "train", Mixture(descriptions=0.5)).turns)
        # As Llama's, "USER" must be a piece behind an answer's end, and one token more behind a space: the label mask
        # of multi-turn conversations counts on it (official `preprocess_v1`).
        yield text.replace("</s>", ".").replace(" USER", ".USER")


def main() -> None:
    # So that --help, or a folder that is named, writes nothing.
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_tokenizer(FOLDER, vocab_size=VOCABULARY, texts=texts())
    tokenizer = Tokenizer.load(FOLDER)
    print(f"vocab_size={tokenizer.vocab_size}, round_ids={round_ids(tokenizer, get_template('vicuna_v1'))}")


if __name__ == "__main__":
    main()
