"""What makes a run the run that it is: its checkpoints go on only under the same settings and the same data."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynllava_jax.config.json_codec import to_json
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.training.setup import differences

_FREE = (
    "mesh",
    "device_batch_size",
    "remat",
    "attention",
    "checkpoint",
    "eval",
    "log",
    "init.checkpoint",
    "data.source",
    "data.images",
    "data.index",
    "data.on_error",
    "data.max_skipped",
    "data.workers",
    "data.prefetch",
)
"""Keys that may change when a run goes on: where and how it computes, and where things lie. What the data hold is
compared by their fingerprint, wherever they lie; what `eval` holds out of them shows there too."""


def identity(config: TrainConfig, data: str, steps: int, loss_groups: int) -> dict[str, Any]:
    """What a checkpoint remembers of its run; plain JSON.

    Args:
        config: of the run.
        data: fingerprint of samples and plan.
        steps: of the whole run.
        loss_groups: of whose mean losses its loss is the mean.
    """
    return {"config": to_json(config), "data": data, "steps": steps, "loss_groups": loss_groups}


def check_same_run(
    workdir: str, saved: Mapping[str, Any], now: Mapping[str, Any], others: Sequence[str] = (), *, force: bool
) -> list[str]:
    """Compares a checkpoint's run with this one.

    Args:
        workdir: named in the error.
        saved, now: see `identity`.
        others: what else differs, one clause each.
        force: `--resume=force`.

    Returns:
        What differs, one clause each; empty, or forced.

    Raises:
        InputError: something differs and is not forced.
    """
    found = [
        f"{key} was {before!r} and is {after!r}"
        for key, before, after in differences(saved.get("config"), now["config"])
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    ]
    if saved.get("steps") != now["steps"]:
        found.append(f"the run had {saved.get('steps')} steps and has {now['steps']}")
    if saved.get("data") != now["data"]:
        found.append("the data, or the order of the samples, are others")
    # Where it is not 1, mesh and device_batch_size decide what is trained. Older checkpoints do not say.
    if (groups := saved.get("loss_groups")) not in (None, now["loss_groups"]):
        found.append(f"the loss was the mean of {groups} means (loss.normalise) and is that of {now['loss_groups']}")
    found += others
    if found and not force:
        raise InputError(
            f"{workdir} holds another run: {'; '.join(found)}. Undo that, give another --workdir, or go on all the "
            "same with --resume=force."
        )
    return found
