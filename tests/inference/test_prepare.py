"""From requests to batches: any number of them, and few pictures in memory."""

import threading
from pathlib import Path

import pytest

from dynllava_jax.config.presets import tiny
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError
from dynllava_jax.inference import prepare
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.request import Request
from dynllava_jax.inference.run import Prepared
from dynllava_jax.testing.images import synthetic_image
from dynllava_jax.testing.tokenizer import write_tokenizer

ROWS = 4


@pytest.fixture
def preparer(tmp_path: Path) -> prepare.Preparer:
    write_tokenizer(tmp_path)
    return prepare.Preparer(tiny(), Tokenizer.load(tmp_path), Buckets())


def test_batches_are_read_one_ahead(preparer: prepare.Preparer, monkeypatch: pytest.MonkeyPatch) -> None:
    read, lock = [], threading.Lock()
    load_image = prepare.load_image

    def noted(source: object) -> object:
        with lock:
            read.append(source)
        return load_image(source)

    monkeypatch.setattr(prepare, "load_image", noted)
    picture = synthetic_image(0)
    requests = [Request("What is this?", [picture], max_new_tokens=3) for _ in range(10 * ROWS)]
    for count, batch in enumerate(preparer.batches(requests, ROWS), 1):
        assert len(batch) == ROWS
        assert len(read) <= (count + 1) * ROWS
    assert len(read) == len(requests)


def test_places_lengths_and_errors(preparer: prepare.Preparer) -> None:
    words = [5, 1, 9, 3, 7, 2]
    requests = [Request("cat " * count, [synthetic_image(count)], max_new_tokens=3) for count in words]
    requests.insert(2, Request("<image> <image> what?", [synthetic_image(0)]))
    requests.insert(4, Request("what?", ["nowhere.png"], max_new_tokens=3))
    batches = list(preparer.batches(requests, ROWS))
    items = dict(item for batch in batches for item in batch)
    assert sorted(items) == list(range(len(requests)))
    assert [place for place, item in items.items() if isinstance(item, InputError)] == [2, 4]
    assert "nowhere.png" in str(items[4])
    lengths = [item.sample.length for batch in batches for _, item in batch if isinstance(item, Prepared)]
    assert lengths == sorted(lengths)
    for place, item in items.items():
        if isinstance(item, Prepared):
            alone = preparer(requests[place])
            assert (item.pixels[0] == alone.pixels[0]).all()
            assert (item.sample.tokens == alone.sample.tokens).all()
