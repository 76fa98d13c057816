"""What is noted of every step: its metrics, how fast it was, and whether the run may go on."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax

from dynllava_jax.analysis.flops import peak_flops, training_flops
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.training.metrics import Writer
from dynllava_jax.training.samples import Samples
from dynllava_jax.training.step import Metrics
from dynllava_jax.training.watch import LossWatch, gradient_problem


class BadLossError(Exception):
    """A step's loss or gradient is no number, or the loss exploded; `step` counts steps done."""

    def __init__(self, step: int, problem: str) -> None:
        super().__init__(problem)
        self.step, self.problem = step, problem


class Recorder:
    """Notes the steps one behind, so that the device always has the next one to do."""

    def __init__(
        self,
        writers: Sequence[Writer],
        samples: Samples,
        model: ModelConfig,
        config: TrainConfig,
        devices: Sequence[Any],
    ) -> None:
        self._writers = writers
        self._samples, self._model, self._config = samples, model, config
        self._watch = LossWatch(config.log.explosion)
        peak = peak_flops(devices[0].device_kind)
        self._peak = None if peak is None else peak * len(devices)
        self._begun: tuple[int, Metrics, float | None] | None = None
        self._done: tuple[int, dict[str, float]] | None = None
        self._since = time.perf_counter()
        self.last: dict[str, float] = {}

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was just begun, and notes the one before.

        Args:
            step: steps done with this one.
            metrics: on the devices, not yet computed.

        Raises:
            BadLossError: see there.
        """
        # A CPU computes some steps before it says that they are begun, with several processes all: they end here.
        over = all(cast(Any, value).is_ready() for value in metrics.values())
        self.note()
        self._begun = (step, metrics, time.perf_counter() if over else None)

    def settle(self) -> None:
        """Waits for the step that was begun last and looks at its loss.

        Raises:
            BadLossError: see there; the step is noted.
        """
        if self._begun is None:
            return
        (step, metrics, over), self._begun = self._begun, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        # Answers that are all too short to be sparsified have no keep rate, which is another thing than 0.
        values = {name: value for name, value in values.items() if value == value or not name.endswith("_keep_rate")}
        values["skipped"] = self._samples.rows(step - 1) - values["samples"]
        tokens = values.pop("read_tokens")
        now = time.perf_counter() if over is None else over
        self._done = step, values | self._speed(step, tokens, now - self._since)
        self._since = now
        if (problem := self._watch.problem(values["loss"]) or gradient_problem(values)) is not None:
            self.note()
            raise BadLossError(step, problem)

    def note(self, more: Mapping[str, float] | None = None) -> None:
        """Writes the step that was begun last, together with `more`, and starts the clock of the next one."""
        self.settle()
        if self._done is None:
            return
        step, values = self._done
        self._done, self.last = None, {**values, **(more or {})}
        for writer in self._writers:
            writer.write(step, self.last)
        if more is not None:
            self.restart()

    def flush(self) -> None:
        """Makes what is noted survive a kill: before a checkpoint, from which a run goes on with later steps."""
        for writer in self._writers:
            writer.flush()

    def restart(self) -> None:
        """Leaves what was done since the last step out of the next one's time."""
        self._since = time.perf_counter()

    def _speed(self, step: int, tokens: float, seconds: float) -> dict[str, float]:
        """`tokens` are those of the samples that could be read, on whatever process; padding is none."""
        planned = self._samples.plan[step - 1]
        speed = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        if self._peak is not None:
            rows = self._config.global_batch_size
            flops = training_flops(
                self._model, self._config.optimizer, rows=rows, length=planned.length, slots=planned.images
            )
            speed["mfu"] = flops / (seconds * self._peak)
        return speed
