"""What is compared: which checkpoint of a folder, with what dropped where."""

import dataclasses
from typing import Any

from dynllava_jax.sparsify.eviction import Eviction, HeavyHitters, SlidingWindow

_NO_TEXT = ("output_selector", None)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        name: how the row is called.
        models: folders that may hold its weights; the first that is there is taken.
        sparsity: fields of `SparsityConfig` in place of the model's own.
        eviction: a cache policy for the answer, which only a given text can be judged by.
        blind: also show other pictures: what is right then was guessed.
        claim: the claim stands on this row, so that it is asked more questions (`evidence.Sizes`).
        paper: name of the paper's row beside it, see `evaluation.paper`.
    """

    name: str
    models: tuple[str, ...]
    sparsity: tuple[tuple[str, Any], ...] = ()
    eviction: Eviction | None = None
    blind: bool = False
    claim: bool = False
    paper: str | None = None


BASE = Setting("dense base", ("base_whole", "base"), blind=True, paper="LLaVA-1.5")
CONTROL = Setting("dense control", ("control",), blind=True, claim=True)
"""As long trained as what drops tokens, from the same base."""

_VISION = ("vision_only",)
_RATES = (5, 10, 20, 35, 50, 80)


def _images(selector: str, place: str = "image", rate: float = 0.2) -> tuple[tuple[str, Any], ...]:
    return ((f"{place}_selector", selector), (f"{place}_keep_rate", rate))


def _vision_rate(percent: int) -> Setting:
    models = _VISION if percent == 20 else (f"vision_only_r{percent}", *_VISION)
    paper = {20: "Dynamic-LLaVA I", 50: "Dynamic-LLaVA I|T, r = 50 %", 80: "Dynamic-LLaVA I|T, r = 80 %"}.get(percent)
    fields = (("image_keep_rate", percent / 100),)
    return Setting(f"I, r = {percent} %", models, fields, blind=percent == 20, paper=paper)


VISION = (
    BASE,
    CONTROL,
    *(_vision_rate(percent) for percent in _RATES),
    Setting("I|T, r = 20 %", ("dynamic",), blind=True, claim=True, paper="Dynamic-LLaVA I|T"),
    *(
        Setting(f"random tokens, {percent} %", CONTROL.models, _images("random", rate=percent / 100))
        for percent in (5, 10, 20)
    ),
    Setting("uniform stride, 20 %", CONTROL.models, _images("stride")),
    Setting("2-D pooling before the decoder, 20 %", CONTROL.models, _images("pool", "embed")),
    Setting("2-D pooling after layer 2, 20 %", CONTROL.models, _images("pool")),
    Setting("FastV after layer 2, 20 %", CONTROL.models, _images("fastv"), paper="FastV"),
)
"""Those without a training of their own run on the dense control: the same weights, only the choice differs."""

LANGUAGE = (
    BASE,
    CONTROL,
    Setting("I, r = 20 %", _VISION, paper="Dynamic-LLaVA I"),
    Setting("I|T, r^OT = 20 %", ("dynamic_ot20",), paper="Dynamic-LLaVA I|T, r^OT = 20 %"),
    Setting("I|T, r^OT = 50 %", ("dynamic",), paper="Dynamic-LLaVA I|T"),
    Setting("I|T, r^OT = 80 %", ("dynamic_ot80",), paper="Dynamic-LLaVA I|T, r^OT = 80 %"),
    Setting(
        "random 50 %", CONTROL.models, (("output_selector", "random"), ("output_keep_rate", 0.5)), paper="Random 50 %"
    ),
    Setting(
        "every other token",
        CONTROL.models,
        (("output_selector", "stride"), ("output_keep_rate", 0.5)),
        paper="Structure",
    ),
    Setting("H2O 50 %", CONTROL.models, (_NO_TEXT,), HeavyHitters(0.5), paper="H2O"),
    Setting("streaming window 50 %", CONTROL.models, (_NO_TEXT,), SlidingWindow(0.5)),
    Setting(
        "FastV and H2O 50 %", CONTROL.models, (*_images("fastv"), _NO_TEXT), HeavyHitters(0.5), paper="FastV + H2O"
    ),
)

ABLATIONS = (
    Setting("I|T as the paper trains it", ("reference", "dynamic")),
    Setting("dropped tokens zeroed instead of masked", ("zeroed",)),
    Setting("sparse layer 1", ("layer1",)),
    Setting("sparse layer 4", ("layer4",)),
    Setting("LEN 0", ("len0",)),
    Setting("LEN 100", ("len100",)),
    Setting("lambda 10", ("lambda10",)),
    Setting("lambda 1000", ("lambda1000",)),
    Setting("instruct predictor too", ("instruct",)),
    Setting("tau fixed", ("tau_fixed",)),
    Setting("image predictor linear", ("predictor_linear",)),
    Setting("image predictor MLP", ("predictor_mlp",)),
    Setting("image predictor of 1 block", ("predictor_1block",)),
)
"""The first is what the others are compared with: `reference` where they are shorter trainings than `dynamic`."""
