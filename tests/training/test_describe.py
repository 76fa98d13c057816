"""What `dynllava train --dry-run` prints."""

from dynllava_jax.training import describe


def test_letters_are_printed_as_they_are() -> None:
    first = {"rows": 1, "length": 8, "images": 0, "samples": []}
    described = {"config": {"data": {"source": "Köln.json"}}, "summary": [], "first_batch": first}
    assert "Köln.json" in "\n".join(describe.lines(described))
