"""The official names of the projectors and our projector configs, both ways."""

import dataclasses
import re
from typing import Any

from dynllava_jax.config.source import Source
from dynllava_jax.config.vision import (
    IdentityProjector,
    MlpProjector,
    Projector,
    TokenPackerProjector,
    VisionConfig,
)
from dynllava_jax.errors import InputError, shown


def projector_from_hf(source: Source) -> Projector:
    """Reads `mm_projector_type` (official multimodal_projector/builder.py)."""
    kind = source.get("mm_projector_type", "linear")
    with source.named(scale="scale_factor", depth="the depth that mm_projector_type names"):
        if kind == "linear":
            return MlpProjector(depth=1)
        if kind == "identity":
            return IdentityProjector()
        if kind == "tokenpacker":
            return TokenPackerProjector(scale=source.get("scale_factor", 2))
        if match := re.fullmatch(r"mlp(\d+)x_gelu", str(kind)):
            return MlpProjector(depth=int(match[1]))
    raise InputError(
        f"{source.file}: mm_projector_type {shown(kind)} is unknown; use linear, mlp2x_gelu (any number), identity or "
        "tokenpacker."
    )


def projector_to_hf(projector: Projector, vision: VisionConfig) -> dict[str, Any]:
    """Raises InputError for a TokenPacker whose sizes are not the ones hard-coded in the official code."""
    if isinstance(projector, IdentityProjector):
        return {"mm_projector_type": "identity"}
    if isinstance(projector, MlpProjector):
        return {"mm_projector_type": "linear" if projector.depth == 1 else f"mlp{projector.depth}x_gelu"}
    if dataclasses.replace(projector, scale=2) != TokenPackerProjector() or vision.hidden_size != 1024:
        raise InputError(
            f"The official layout has one TokenPacker (width 1024, 8 heads, levels 12, 16, 22, 23), not {projector}."
        )
    return {"mm_projector_type": "tokenpacker", "scale_factor": projector.scale}
