"""From a request to arrays on the host: pictures, prompt, budget. Everything that can be wrong is found here."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.data.image import load_image, preprocess
from dynllava_jax.data.prompt import place_images, tokenize_prompt
from dynllava_jax.data.spans import expand
from dynllava_jax.data.templates import Turn, get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.request import Request
from dynllava_jax.inference.run import Prepared

DEFAULT_ANSWER = 512
"""Answer tokens at most when the caller does not say."""

_READERS = min(8, os.cpu_count() or 1)
"""Threads that read pictures while a batch before them is computed."""


@dataclasses.dataclass(frozen=True)
class Preparer:
    """What turns requests into `Prepared` ones.

    Attributes:
        config: of the model.
        tokenizer: of the model.
        buckets: limits of what can be asked.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    buckets: Buckets

    def __call__(self, request: Request) -> Prepared:
        """Lays out the prompt and loads the pictures.

        Raises:
            InputError: a picture that cannot be read, a wrong number of `<image>`, a prompt beyond the context.
        """
        return self._with_pictures(self._laid_out(request), request)

    def batches(self, requests: Sequence[Request], rows: int) -> Iterator[list[tuple[int, Prepared | InputError]]]:
        """The requests in batches of at most `rows`, those of similar length together, with their places in the list.

        The pictures of one batch are read while the caller computes the batch before it, so that memory holds those of
        two batches, however many requests there are. A request that is wrong stands as its error in its place.
        """
        laid_out: list[tuple[int, Prepared]] = []
        refused: list[tuple[int, Prepared | InputError]] = []
        for place, request in enumerate(requests):
            try:
                laid_out.append((place, self._laid_out(request)))
            except InputError as error:
                refused.append((place, error))
        if refused:
            yield refused
        # Neighbours of similar length waste the least padding.
        laid_out.sort(key=lambda item: item[1].sample.length)

        def read(item: tuple[int, Prepared]) -> tuple[int, Prepared | InputError]:
            place, prepared = item
            try:
                return place, self._with_pictures(prepared, requests[place])
            except InputError as error:
                return place, error

        with ThreadPoolExecutor(_READERS) as pool:
            ahead = None
            for first in range(0, len(laid_out), rows):
                batch = [pool.submit(read, item) for item in laid_out[first : first + rows]]
                if ahead is not None:
                    yield [picture.result() for picture in ahead]
                ahead = batch
            if ahead is not None:
                yield [picture.result() for picture in ahead]

    def _laid_out(self, request: Request) -> Prepared:
        """All but the pictures."""
        if not isinstance(request, Request):
            raise InputError(f"A request must be a dynllava_jax.Request, not a {type(request).__name__}.")
        images = as_list(request.images)
        question = place_images(request.question, len(images))
        most = self.buckets.images[-1]
        if len(images) > most:
            raise InputError(f"The question comes with {len(images)} images; this model is set up for {most}.")
        text = get_template(self.config.text_prep.template).render([Turn(question)])
        sample = expand(
            self.known(tokenize_prompt(self.tokenizer, text)),
            None,
            image_tokens=self.config.image_tokens,
            round_ids=self.config.text_prep.round_ids,
        )
        return Prepared(sample, [], self.budget(sample.length, request.max_new_tokens), request.sampler, request.seed)

    def _with_pictures(self, prepared: Prepared, request: Request) -> Prepared:
        pixels = [preprocess(load_image(image), self.config.image_prep) for image in as_list(request.images)]
        return dataclasses.replace(prepared, pixels=pixels)

    def known(self, ids: list[int]) -> list[int]:
        """The same ids. Raises InputError for one that the model has no embedding of."""
        if (largest := max(ids)) >= self.config.decoder.vocab_size:
            raise InputError(
                f"The question has the token {largest}, but the model knows {self.config.decoder.vocab_size}; its "
                "tokenizer belongs to another model, or the question spells a special token."
            )
        return ids

    def budget(self, used: int, wanted: int | None) -> int:
        """Answer tokens that are allowed after `used` tokens.

        Raises:
            InputError: the context has no room for them.
        """
        context = self.config.decoder.context
        room = context - used
        if room < 1 or (wanted is not None and wanted > room):
            asked = "an answer" if wanted is None else f"{wanted} new ones"
            raise InputError(
                f"The prompt takes {used} tokens and leaves no room for {asked} in the context of {context}; "
                "shorten the question, use fewer images or lower max_new_tokens."
            )
        return min(room, DEFAULT_ANSWER, self.buckets.answer[-1]) if wanted is None else wanted


def as_list(images: Any) -> Sequence[Any]:
    """One picture, several, or None as a list."""
    if images is None:
        return []
    if isinstance(images, (str, bytes, bytearray, memoryview, Path, np.ndarray)) or not isinstance(images, Sequence):
        return [images]
    return images
