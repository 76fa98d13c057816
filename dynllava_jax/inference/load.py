"""From a name or a folder to an assistant."""

import dataclasses
import functools
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh

from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.checkpoint.load import load as load_checkpoint
from dynllava_jax.checkpoint.paths import AnyPath, as_path
from dynllava_jax.checkpoint.source import Source, open_source
from dynllava_jax.config.check import DTYPES, check_type
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.templates import get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.demo import embedded
from dynllava_jax.errors import InputError
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.layouts import placement
from dynllava_jax.inference.memory import check_fits
from dynllava_jax.kernels import api
from dynllava_jax.kernels.products import fused_products
from dynllava_jax.nn.jax_settings import check_jax_settings, default_device
from dynllava_jax.sharding.mesh import check_context, make_mesh, own_mesh

_log = logging.getLogger(__name__)


def load(
    model: str | Path = "demo",
    *,
    mesh: str | Mesh | None = None,
    device: str | None = None,
    dtype: str | None = None,
    keep_rate: float | None = None,
    output_keep: bool = True,
    template: str | None = None,
    selector: str | None = None,
    sparsity: Mapping[str, Any] | None = None,
    buckets: Buckets | None = None,
    attention: api.Implementation = None,
    products: str | None = None,
    compile_cache: str | Path | None = None,
) -> Assistant:
    """Loads a model for asking.

    Args:
        model: "demo", or the folder or `gs://` address of a model checkpoint (what `dynllava convert` writes), or of a
            training run (its newest checkpoint) or one of its checkpoints (`WORKDIR/checkpoints/STEP`).
        mesh: devices to spread over, such as "data=1,tensor=4", or a mesh with the axes data, fsdp and tensor; None:
            one device.
        device: platform, "cpu", "gpu" or "tpu"; None: JAX's default, also one set by `jax.default_device`.
        dtype: of parameters and computation; None: as stored.
        keep_rate: share of the image tokens that enter the deep stack; None: the model's own.
        output_keep: False stores every generated token.
        template: conversation format; None: the model's own.
        selector: image selector in place of the model's, a name or "package.module:Class".
        sparsity: fields of `SparsityConfig` in place of the model's own, such as {"embed_selector": "pool",
            "embed_keep_rate": 0.25}: whatever is dropped elsewhere or by others.
        buckets: shapes that requests are padded to.
        attention: implementation of attention, see `kernels.api`.
        products: fused kernels for the products of each generated token, see `kernels.products`; None: by XLA.
        compile_cache: folder on a local disk in which compiled programs are kept between processes; None: as JAX is
            configured (`JAX_COMPILATION_CACHE_DIR`).

    Raises:
        InputError: no checkpoint there, a damaged one, too little memory, an unknown option, also one of JAX that is
            not supported.
    """
    wanted = {
        "model": (model, str | os.PathLike),
        "mesh": (mesh, str | Mesh | None),
        "device": (device, str | None),
        "output_keep": (output_keep, bool),
        "template": (template, str | None),
        "sparsity": (sparsity, Mapping | None),
        "buckets": (buckets, Buckets | None),
        "attention": (attention, str | Sequence | None),
        "products": (products, str | None),
        "compile_cache": (compile_cache, str | os.PathLike | None),
    }
    for name, (value, hint) in wanted.items():
        check_type(value, hint, name)
    if device == "":
        raise InputError("device is empty; name one, or leave it out.")
    check_jax_settings()
    fused_products(products)  # a name that there is not
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; use {', '.join(DTYPES)}.")
    if compile_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(as_path(compile_cache, "compile_cache")))
        reset_cache()  # the folder of this process's first compilation is the one that JAX goes on with
    devices, alone = _devices(device)
    grid = own_mesh(mesh) if isinstance(mesh, Mesh) else None if mesh is None else make_mesh(mesh, devices)
    check_context(grid)
    used = list(grid.devices.flat) if grid is not None else [alone]
    if device is not None and used[0] not in devices:
        raise InputError(f"The mesh lies on devices of kind {used[0].platform}, not {device}; leave device out.")
    api.check_implementation(attention, used[0].platform)
    embedded_one = str(model) == "demo"
    path = as_path(embedded.CHECKPOINT if embedded_one else model, "model")
    source = open_source(_existing(path))
    config = without_untrained(source)
    config = _adjust(config, keep_rate, output_keep, template, selector, sparsity or {})
    dtype = dtype or _native(source.dtype, used[0])

    check_fits(str(model), parameter_bytes(config, dtype), used, 1 if grid is None else grid.shape["data"])
    where = functools.partial(placement, where=used[0] if grid is None else grid, config=config)
    weights = load_checkpoint(path, config, dtype=jnp.dtype(dtype), sharding=where)
    tokenizer = Tokenizer.load(source.files)
    assistant = Assistant(
        weights,
        tokenizer,
        buckets=buckets,
        mesh=grid,
        dtype=dtype,
        attention=attention,
        products=products,
        scenes_only=embedded_one,
    )
    _log.info("%s: at most %d programs for any stream of requests", model, assistant.programs)
    return assistant


def _devices(platform: str | None) -> tuple[Sequence[Any], Any]:
    """All devices of a platform, and the one that a model without a mesh goes to."""
    try:
        default = default_device()
        found = jax.devices(default.platform if platform is None else platform)
        return found, default if default in found else found[0]
    except RuntimeError as error:
        raise InputError(f"There is no device {platform!r} here: {str(error).splitlines()[0]}") from None


def _existing(path: AnyPath) -> AnyPath:
    try:
        if path.exists():
            return path
    except ImportError as error:
        raise InputError(
            f"{path} needs a package for its kind of address: {error} (for gs://: pip install 'dynllava_jax[gcs]')."
        ) from None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise InputError(
            f"There is no folder {path}; if that is a name on the Hugging Face hub, download it (hf download {path} "
            f"--local-dir SRC) and convert it once: dynllava convert from-torch SRC DST"
        )
    raise InputError(f"There is no model {str(path)!r}: give demo, or the folder of a converted checkpoint.")


def without_untrained(source: Source) -> ModelConfig:
    """What conversion had to initialise at random would drop tokens at random: it stays unused."""
    fresh = source.facts.get("fresh", ())
    if "projector" in fresh:
        _log.warning("the projector of this checkpoint is not trained: the model does not see pictures yet")
    untrained = [name.replace("predictor", "selector") for name in fresh if name.endswith("predictor")]
    if untrained:
        _log.warning("the predictors of this checkpoint are not trained (%s): nothing is dropped", ", ".join(untrained))
    sparsity = dataclasses.replace(source.config.sparsity, **dict.fromkeys(untrained))
    return dataclasses.replace(source.config, sparsity=sparsity)


def _adjust(
    config: ModelConfig,
    keep_rate: float | None,
    output_keep: bool,
    template: str | None,
    selector: str | None,
    fields: Mapping[str, Any],
) -> ModelConfig:
    known = [field.name for field in dataclasses.fields(SparsityConfig)]
    if unknown := sorted(set(fields) - set(known), key=str):
        raise InputError(f"sparsity has no field {unknown[0]!r}; there are {', '.join(known)}.")
    sparsity = dataclasses.replace(config.sparsity, **fields)
    if keep_rate is not None:
        if sparsity.image_selector is None and selector is None:
            raise InputError("keep_rate has no effect: this model has no image selector; name one with selector=.")
        sparsity = dataclasses.replace(sparsity, image_keep_rate=keep_rate)
    if selector is not None:
        sparsity = dataclasses.replace(sparsity, image_selector=selector)
    if not output_keep:
        sparsity = dataclasses.replace(sparsity, output_selector=None)
    text = config.text_prep
    if template is not None:
        text = dataclasses.replace(text, template=get_template(template).name)
    return dataclasses.replace(config, sparsity=sparsity, text_prep=text)


def _native(stored: str, device: Any) -> str:
    # TPUs have no float16 arithmetic.
    return "bfloat16" if stored == "float16" and device.platform == "tpu" else stored


def parameter_bytes(config: ModelConfig, dtype: str) -> int:
    """What a model's weights take."""
    sizes = (math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_model(config)))
    return sum(sizes) * jnp.dtype(dtype).itemsize
