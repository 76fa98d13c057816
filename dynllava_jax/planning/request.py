"""What may be asked of a plan, and the reports that answer it."""

import dataclasses
from collections.abc import Callable, Iterator

from dynllava_jax.config.training import TrainConfig
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.planning.cost import data_rate, epoch
from dynllava_jax.planning.machine import Machine, machine
from dynllava_jax.planning.plan import Report, plan_answer, plan_step
from dynllava_jax.planning.search import largest_batch, sweep
from dynllava_jax.training.setup import preset_model


@dataclasses.dataclass(frozen=True)
class Request:
    """A question about one machine.

    Attributes:
        config: of the run; its mesh is the one that is planned.
        topology: see `machine.machine`.
        images: of each sample.
        answers: shape of a batch of requests to generate for, in place of training.
        dense: generate without sparsification, by a model without predictors: those of one that drops nothing only for
            a request lie beside it, 0.15 % of a 7B model's weights.
        largest: look for the largest batch.
        sweep: try meshes and remat policies.
        samples: of an epoch whose cost is wanted, 0 for none.
        mfu: model FLOP/s utilisation to suppose for it, and for what a host has to read.
        recipe_batch: global batch of the recipe, from which a plan may differ; None: the config's.
    """

    config: TrainConfig
    topology: str
    images: int = 1
    answers: Shape | None = None
    dense: bool = False
    largest: bool = False
    sweep: bool = False
    samples: int = 0
    mfu: float = 0.4
    recipe_batch: int | None = None


def answer(request: Request, tell: Callable[[str], None]) -> Iterator[Report]:
    """The reports, as they are ready.

    Raises:
        InputError: an unknown topology, a mesh or batch that does not divide, a compiler that is not installed.
    """
    where = machine(request.topology)
    if request.answers is not None:
        model = preset_model(request.config)
        if request.dense:
            model = dataclasses.replace(model, sparsity=model.sparsity.dense())
        tell("prefill and decode")
        yield from plan_answer(model, request.answers, request.config.mesh, "bfloat16", where)
        return
    if request.sweep:
        reports = sweep(request.config, where, request.images, tell)
    elif request.largest:
        reports = [largest_batch(request.config, where, request.images, tell)]
    else:
        tell("step")
        reports = [plan_step(request.config, where, request.images)]
    for report in reports:
        # A sweep also tells of meshes that were refused before anything was known of them.
        yield report | _in_time(request, report, where) if "flops_per_step" in report else report


def _in_time(request: Request, report: Report, where: Machine) -> Report:
    """What becomes of a step in a run."""
    recipe = request.config.global_batch_size if request.recipe_batch is None else request.recipe_batch
    more: Report = {"recipe_global_batch": recipe, "off_recipe": report["global_batch"] != recipe}
    more["host_bytes_per_second"] = data_rate(report, request.mfu, where)
    if request.samples:
        more["cost"] = epoch(report, request.samples, request.mfu, where)
    return more
