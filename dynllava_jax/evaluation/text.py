"""How near a generated description comes to the true one.

The paper reports METEOR, whose stem and synonym tables cannot be had here. In its place stand chrF and the F1 of the
objects that are named.
"""

import re
from collections import Counter

from dynllava_jax.demo.catalogue import OBJECTS
from dynllava_jax.demo.scenes import Scene

_ORDER, _BETA = 6, 2.0


def chrf(text: str, reference: str) -> float:
    """Character n-gram F-score, from 0 to 1 (Popović 2015; n to 6, recall counts twice, blanks left out).

    Lengths that one of the texts is too short for are left out, as sacrebleu does.
    """
    precisions, recalls = [], []
    for size in range(1, _ORDER + 1):
        ours, wanted = _grams(text, size), _grams(reference, size)
        if not ours or not wanted:
            break
        common = sum((ours & wanted).values())
        precisions.append(common / sum(ours.values()))
        recalls.append(common / sum(wanted.values()))
    if not any(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)


def object_f1(text: str, scene: Scene) -> float:
    """F1 of the objects that a text names against those of the scene, each as often as it is there."""
    named = Counter({thing.name: len(re.findall(rf"\b{thing.name}\b", text.lower())) for thing in OBJECTS})
    there = Counter(placement.thing.name for placement in scene.placements)
    return 2 * sum((named & there).values()) / max(1, sum(named.values()) + sum(there.values()))


def _grams(text: str, size: int) -> Counter[str]:
    plain = "".join(text.split())
    return Counter(plain[start : start + size] for start in range(len(plain) - size + 1))
