"""What a caller may ask a forward pass to show besides its result. Static: a probe is part of the program."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Probe:
    """Intermediate values wanted from a forward pass.

    Attributes:
        hidden: the residual stream after every decoder layer.
        logits: the vocabulary logits of every position (otherwise of the last one only).
        selection: the image predictor's two logits (what was ranked and kept is always told).
        denominator: in training, the smallest denominator of the policy softmax.
    """

    hidden: bool = False
    logits: bool = False
    selection: bool = False
    denominator: bool = False


NOTHING = Probe()
EVERYTHING = Probe(hidden=True, logits=True, selection=True)
