"""The protocol by which tokens are chosen: what a selector may look at, and what it answers.

A selector is an `nnx.Module` built as `Class(rngs, context)`. Its parameters are part of the model. It judges the
tokens of images (places tower, embed, image) or single text tokens (places output, instruct).

B batch, S sequence, M images per sample, N tokens of one image, K kept of N, C their features, D decoder features,
H heads, T text tokens.
"""

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from dynllava_jax.config.sparsity import Predictor
from dynllava_jax.errors import InputError

ImagePlace = Literal["tower", "embed", "image"]
TextPlace = Literal["output", "instruct"]
Place = ImagePlace | TextPlace

IMAGE_PLACES: tuple[ImagePlace, ...] = get_args(ImagePlace)
TEXT_PLACES: tuple[TextPlace, ...] = get_args(TextPlace)
PLACES: tuple[Place, ...] = (*IMAGE_PLACES, *TEXT_PLACES)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageView:
    """What a selector of image tokens may look at.

    `features` are the tower's output (place tower), the projector's output (embed) or the hidden states that enter
    decoder layer `sparse_layer` (image), one row per image token. `hidden`, `kind` (the token kinds of
    `data.spans`, which give every span) and `question` (the mask of the question's tokens) are the whole
    sequence at place image and None before it. `attention` is filled when the selector `wants_attention`: that of
    CLS over the patches (tower) or of the sequence's last query over the image tokens (image); embed has none.
    `keys` holds one key per sample, made from that sample's own seed. `kept` is K in this call, static: a caller may
    ask for another rate than the one that the model was built with.
    """

    features: Float[Array, "B M N C"]
    present: Bool[Array, "B M"]
    hidden: Float[Array, "B S D"] | None
    kind: Int[Array, "B S"] | None
    question: Bool[Array, "B S"] | None
    attention: Float[Array, "B H M N"] | None
    keys: Key[Array, " B"]
    kept: int = dataclasses.field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenView:
    """What a selector of text tokens may look at: the hidden states entering layer `sparse_layer`.

    `positions` count from the start of the answer (output) or of the instruction (instruct). `keep_rate` is the rate
    of this call, static; None is the one that the model was built with.
    """

    hidden: Float[Array, "B T D"]
    positions: Int[Array, "B T"]
    keys: Key[Array, " B"]
    keep_rate: float | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Merged:
    """K tokens made from N, instead of scores; `index` is the place among the N that each one takes, each another."""

    tokens: Float[Array, "B M K C"]
    index: Int[Array, "B M K"]


@runtime_checkable
class ImageSelector(Protocol):
    """Scores image tokens: the K highest are kept, of equal ones the first; NaN is below every number.

    Nobody looks at scores while a model answers: all of them NaN keep the first K. `Assistant.explain` shows them. A
    selector may declare `places` to be refused elsewhere.
    """

    wants_attention: bool

    def __call__(self, view: ImageView) -> Float[Array, "B M N"] | Merged: ...


@runtime_checkable
class TextSelector(Protocol):
    """Judges each text token by itself: kept iff the margin is above 0, which NaN is not.

    Padding must not change a neighbour.
    """

    def __call__(self, view: TokenView) -> Float[Array, "B T"]: ...


@dataclasses.dataclass(frozen=True)
class SelectorContext:
    """What a selector knows when it is built.

    `width` is C or D, `count` N and `kept` K (both 0 at the text places), `predictor` the configured kind of
    learned predictor.
    """

    width: int
    count: int
    kept: int
    keep_rate: float
    predictor: Predictor
    place: Place
    initializer_range: float = 0.02

    @property
    def judges_text(self) -> bool:
        return self.place in TEXT_PLACES


_BUILT_IN: dict[str, tuple[str | None, str | None]] = {
    # name: (images, text), None where it has no such form.
    # Named, not imported: the predictors are part of the model, a room above.
    "learned": ("dynllava_jax.model.predictors:learned", "dynllava_jax.model.predictors:learned"),
    "random": ("dynllava_jax.sparsify.baselines:RandomImage", "dynllava_jax.sparsify.baselines:RandomText"),
    "stride": ("dynllava_jax.sparsify.baselines:StrideImage", "dynllava_jax.sparsify.baselines:StrideText"),
    "pool": ("dynllava_jax.sparsify.pooling:PoolImage", None),
    "fastv": ("dynllava_jax.sparsify.fastv:FastV", None),
}


def load_selector(name: str, context: SelectorContext, rngs: nnx.Rngs) -> Any:
    """Builds the `ImageSelector` or `TextSelector` of that name, `"package.module:Class"` being a user's own.

    Raises:
        InputError: an unknown name, a module or class that is not there, a class that cannot be built as
            `Class(rngs, context)`, whose instances are not callable, or that is not meant for this place.
    """
    make = find_selector(name, context)
    try:
        if isinstance(make, type):  # a module's metaclass hides the constructor's own signature
            inspect.signature(make.__init__).bind(None, rngs, context)
        else:
            inspect.signature(make).bind(rngs, context)
    except TypeError as error:
        raise InputError(f"Selector {name} cannot be built as Class(rngs, context): {error}.") from error
    selector = make(rngs, context)
    if not isinstance(selector, nnx.Module) or not callable(selector):
        raise InputError(
            f"Selector {name} gives a {type(selector).__name__}; it must be an nnx.Module with __call__(view)."
        )
    places = getattr(selector, "places", PLACES)
    if context.place not in places:
        raise InputError(f"Selector {name} serves {', '.join(places)}, not {context.place}_selector.")
    wants_attention = getattr(selector, "wants_attention", None)
    if not context.judges_text and wants_attention is None:
        raise InputError(f"Selector {name} judges images: say `wants_attention = False` (or True) in its class.")
    if context.place == "embed" and wants_attention:
        raise InputError(
            f"Selector {name} wants attention, and no layer stands before embed_selector to give it; make it the "
            "tower_selector or the image_selector."
        )
    return selector


def check_result(selector: ImageSelector, context: SelectorContext, view: ImageView) -> Array | Merged:
    """The selector's answer for `context.kept` tokens: scores as float32, or merged tokens by ascending index.

    It is held against the protocol while it is traced, so that nothing broadcasts silently.

    Raises:
        InputError: names the class and the shape or dtype wanted.
    """
    result, name = selector(dataclasses.replace(view, kept=context.kept)), type(selector).__name__
    samples, images, count, width = view.features.shape
    if isinstance(result, Merged):
        wanted = (samples, images, context.kept, width)
        tokens, index = (getattr(array, "shape", array) for array in (result.tokens, result.index))
        if (tokens, index) != (wanted, wanted[:3]):
            raise InputError(
                f"{name} merges into tokens {tokens} at index {index}; wanted are {wanted} and {wanted[:3]}."
            )
        if not jnp.issubdtype(result.index.dtype, jnp.integer):
            raise InputError(f"{name} merges at an index of {result.index.dtype}; wanted are whole numbers.")
        order = jnp.argsort(result.index, axis=-1)  # as they will stand in the sequence
        return Merged(
            jnp.take_along_axis(result.tokens, order[..., None], axis=2),
            jnp.take_along_axis(result.index, order, axis=-1),
        )
    return _checked(result, (samples, images, count), f"{name} returns scores")


def check_margins(selector: TextSelector, view: TokenView) -> Float[Array, "B T"]:
    """The selector's margins as float32, held against the protocol as `check_result` does.

    Raises:
        InputError: names the class and the shape wanted.
    """
    return _checked(selector(view), view.positions.shape, f"{type(selector).__name__} returns margins")


def _checked(result: Any, wanted: tuple[int, ...], what: str) -> Array:
    if not isinstance(result, jax.Array | np.ndarray):
        raise InputError(f"{what} as a {type(result).__name__}; wanted is an array of shape {wanted}.")
    if result.shape != wanted:
        raise InputError(f"{what} of shape {result.shape}; wanted is {wanted}.")
    return jnp.asarray(result, jnp.float32)


def find_selector(name: str, context: SelectorContext) -> Callable[..., Any]:
    """What builds the selector of that name, as `load_selector` does; raises InputError where there is none."""
    own = name not in _BUILT_IN
    if not own:
        if name == "learned" and context.place in ("tower", "embed"):
            raise InputError(
                f"SparsityConfig.{context.place}_selector has no learned form; use random, stride or pool."
            )
        known = _BUILT_IN[name][context.judges_text]
        if known is None:
            raise InputError(f"{context.place}_selector {name} judges images only; use learned, random or stride.")
        name = known
    module_name, separator, attribute = name.partition(":")
    if not (separator and module_name and attribute):
        near = difflib.get_close_matches(name, _BUILT_IN, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{context.place}_selector {name!r} is unknown; {hint}Give {', '.join(_BUILT_IN)} or "
            "package.module:Class of your own."
        )
    module = _import(name, module_name)
    try:
        make = getattr(module, attribute)
    except AttributeError:
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise InputError(f"Selector {name}: module {module_name} has no {attribute}{hint}") from None
    if own and not isinstance(make, type):
        raise InputError(f"Selector {name} is a {type(make).__name__}, not a class.")
    return cast(Callable[..., Any], make)


def _import(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise InputError(
                f"Selector {name}: there is no module {missing}; is its folder on PYTHONPATH (or installed)?"
            ) from None
        raise InputError(f"Selector {name}: {module_name} needs the module {missing}, which is missing.") from error
    except (ImportError, SyntaxError, ValueError) as error:
        raise InputError(f"Selector {name}: importing {module_name} failed with {error}.") from error
