"""A training run from its config to its last checkpoint, in the order in which it happens."""

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from etils import epath

from dynllava_jax.checkpoint.adapters import is_adapter
from dynllava_jax.config.json_codec import to_json
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.errors import InputError
from dynllava_jax.nn.jax_settings import check_jax_settings
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training import describe, health, processes
from dynllava_jax.training.checkpoint import TrainingCheckpoints
from dynllava_jax.training.claim import claim
from dynllava_jax.training.evaluate import evaluate
from dynllava_jax.training.feed import DeviceBatch, Feed
from dynllava_jax.training.goodput import CHECKPOINT, Goodput, advice, measured
from dynllava_jax.training.identity import check_same_run, identity
from dynllava_jax.training.initial import initial_values, made_paths
from dynllava_jax.training.metrics import check_packages, open_writers
from dynllava_jax.training.profile import profiler
from dynllava_jax.training.record import BadLossError, Recorder
from dynllava_jax.training.samples import Samples, training_samples
from dynllava_jax.training.setup import Subject, settle
from dynllava_jax.training.state import TrainState, abstract_state, begin
from dynllava_jax.training.step import Trainer
from dynllava_jax.training.stop import StopSignal
from dynllava_jax.training.supply import Supply
from dynllava_jax.training.watch import stopped

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says besides the config.

    Attributes:
        workdir: where checkpoints and metrics go, and where a run is found again.
        force: go on although config or data differ.
        restore: the checkpoint to go on from; None: the newest.
        profile: first step (from 1 on) and number of steps to trace.
        began: when the process did, by `time.monotonic`, for the account of its time; None: now.
    """

    workdir: str
    force: bool = False
    restore: int | None = None
    profile: tuple[int, int] | None = None
    began: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        step: steps done.
        steps: steps of the whole run.
        metrics: of the last step.
    """

    step: int
    steps: int
    metrics: dict[str, float]

    @property
    def finished(self) -> bool:
        return self.step == self.steps


@dataclasses.dataclass(frozen=True)
class Run:
    """All that is settled before anything is computed."""

    config: TrainConfig
    subject: Subject
    trainer: Trainer
    samples: Samples
    held_out: Samples | None


def prepare(config: TrainConfig) -> Run:
    """Settles model, mesh, data and plan; nothing is loaded onto a device.

    Raises:
        InputError: whatever of the config does not fit together, the devices, JAX's settings, or the data.
    """
    check_jax_settings()
    check_packages(config.log)
    subject = settle(config)
    mesh = make_mesh(config.mesh)
    samples, held_out = training_samples(config, subject)
    return Run(config, subject, Trainer(subject.model, config, mesh, len(samples.plan)), samples, held_out)


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """What `train` would do, see `describe`."""
    run = prepare(config)
    return describe.describe(config, run.subject, run.trainer.mesh, run.trainer.division, run.samples, run.held_out)


def train(config: TrainConfig, options: Options) -> Result:
    """Trains to the last step, or until a signal stops it: everything is saved in either case.

    Raises:
        InputError: bad input, a work folder that holds another run or that another run uses, what cannot be written.
        CheckError: the loss or the gradient is no number any more, or the loss exploded.
        InterruptedRunError: a process that the run needs was lost; started again, it goes on.
    """
    # ---------------------------------------------------------------------------------------- model, mesh, data, plan
    run = prepare(config)
    trainer, plan = run.trainer, run.samples.plan
    for line in describe.summary(run.trainer.mesh, run.trainer.division, run.samples, run.held_out):
        _say(line)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        claimed = stack.enter_context(claim(options.workdir))
        checkpoints = stack.enter_context(_checkpoints(run, options))

        # ------------------------------------------------------------------------------------------------------ state
        state, start = _begin_or_resume(run, checkpoints, options)
        if start == len(plan):
            _say(f"{options.workdir} is finished: all {start} steps are done")
            return Result(start, len(plan), {})
        memory = _memory(run)
        times = stack.enter_context(measured(options.workdir, start, options.began))
        stack.enter_context(_account(times))

        # ------------------------------------------------------------------------------------------------------ steps
        _write_experiment(config, options)
        writers = stack.enter_context(open_writers(options.workdir, config, start, len(plan)))
        recorder = Recorder(writers, run.samples, run.subject.model, config, list(trainer.mesh.devices.flat))
        feed = stack.enter_context(Feed(run.samples.dataset, plan, trainer.mesh, config.data, start_step=start))
        if options.profile is not None and not start < options.profile[0] <= len(plan):
            steps = f"this start does the steps {start + 1} to {len(plan)}, not {options.profile[0]}"
            _say(f"warning: --profile traces nothing: {steps}")
        trace = stack.enter_context(profiler(options.workdir, options.profile))
        supply = Supply(feed, recorder, times)
        doctor = _Doctor(run)
        step, ending = start, False
        try:
            for fed in supply:
                step = fed.step + 1
                trace.before(step, state)
                state, metrics = trainer.step(state, fed.batch)
                recorder.add(step, metrics)
                _tell_failures(fed)
                checkpoints.check()
                times.beat()
                ending = stop.agreed()

                # ----------------------------------------------------------------- health, evaluation and checkpoints
                now = due(step, config, last=step == len(plan), ending=ending)
                if not any(now):
                    continue
                recorder.settle()  # a bad loss is never saved
                more = doctor.examine(state, fed.batch) if now.health else {}
                if now.evaluation:
                    with supply.watched():
                        more |= _evaluate(run, state)
                    if supply.broken is not None:
                        break
                if now.checkpoint:
                    times.agree()
                    more |= times.numbers()
                recorder.note(more)
                if now.checkpoint:
                    claimed.check()
                    recorder.flush()
                    with times.spent(CHECKPOINT):
                        _save(checkpoints, state, step, memory, more.get("eval/loss"))
                    times.saved(step)
                    _advise(run, times)
                    recorder.restart()
                if ending:
                    break
            if supply.broken is not None:
                # ------------------------------------------------------------------------ no more data: save what is
                recorder.settle()
                claimed.check()
                if step > start and jax.process_count() == 1:  # others wait in a step that will not be
                    _save(checkpoints, state, step, memory, None)
                    times.saved(step)
        except BadLossError as error:
            checkpoints.wait()
            saved = checkpoints.steps()
            ids = run.samples.ids(error.step - 1)
            raise stopped(error.step, error.problem, ids, saved[-1] if saved else None) from None
        recorder.note()
        with times.spent(CHECKPOINT):
            # Data break off on one process, and the others are in a step or an evaluation, not here.
            checkpoints.wait(together=supply.broken is None)
        if supply.broken is not None:
            raise supply.error(checkpoints.steps())
        times.write()
        _say(str(times))
        _say(f"step {step} of {len(plan)} is done and saved in {options.workdir}")
        return Result(step, len(plan), recorder.last)


class Due(NamedTuple):
    """What comes after a step."""

    health: bool
    evaluation: bool
    checkpoint: bool


def due(step: int, config: TrainConfig, *, last: bool, ending: bool) -> Due:
    """What comes after `step` steps.

    A checkpoint has a score only if it is evaluated, so each one is; but a run that was told to stop has no time.
    """

    def every(count: int) -> bool:
        return count > 0 and step % count == 0

    checkpoint = last or ending or every(config.checkpoint.every)
    evaluation = config.eval.every > 0 and not ending and (checkpoint or every(config.eval.every))
    return Due(every(config.log.health_every), evaluation, checkpoint)


def _checkpoints(run: Run, options: Options) -> TrainingCheckpoints:
    config = run.config
    return TrainingCheckpoints(
        options.workdir,
        run.subject.model,
        keep=config.checkpoint.keep,
        keep_best=config.checkpoint.keep_best,
        init=config.init.checkpoint,
        files=run.subject.files,
        made=made_paths(run.trainer.parameters, run.subject.model, config),
        lora=config.optimizer.lora,
    )


def _memory(run: Run) -> dict[str, Any]:
    return identity(run.config, run.samples.fingerprint, len(run.samples.plan), run.trainer.loss_groups)


def _begin_or_resume(run: Run, checkpoints: TrainingCheckpoints, options: Options) -> tuple[TrainState, int]:
    """The state to go on from, and the steps done. What decides, in this order:

    1. `--restore STEP`: that checkpoint of the work folder.
    2. A work folder with checkpoints: the newest one. `init` then gives the frozen parameters only.
    3. `init.checkpoint`: a warm start. What it lacks comes from `init.seed`.
    4. `init.seed` alone.
    """
    trainer, config = run.trainer, run.config
    saved = checkpoints.steps()
    step = options.restore if options.restore is not None else processes.same(saved[-1] if saved else -1)
    if step < 0 and options.restore is None:
        values, made = initial_values(trainer.parameters, run.subject.model, config, trainer.mesh)
        parts = sorted({"adapters" if is_adapter(path) else path.partition("/")[0] for path in made})
        told = f"; made from init.seed: {', '.join(parts)}" if parts else ""
        _say(f"beginning with {config.init.checkpoint or 'random weights'}{told}")
        return begin(trainer.parameters, values, config.dtype, trainer.mesh), 0
    info = checkpoints.info(step)
    others = checkpoints.other_init(info, trainer.parameters.frozen)
    for change in check_same_run(options.workdir, info.data, _memory(run), others, force=options.force):
        _say(f"forced: {change}")
    if step > (steps := len(run.samples.plan)):
        raise InputError(
            f"{options.workdir} has done {step} steps and this run has only {steps}; give it more (steps, epochs), or "
            "--restore an earlier checkpoint."
        )
    like = abstract_state(trainer.parameters, config.dtype, trainer.mesh)
    _say(f"going on from step {step} of {options.workdir}; the warm start is not read, but for what is frozen")
    restored = checkpoints.restore(step, like.params, _rest(like), like.frozen)
    missing = [path for path in trainer.parameters.frozen if path not in restored.frozen]
    frozen = initial_values(trainer.parameters, run.subject.model, config, trainer.mesh, only=missing).values
    frozen = {path: value.astype(config.dtype) for path, value in frozen.items()}
    return TrainState(restored.params, restored.rest["adam"], restored.rest["step"], restored.frozen | frozen), step


def _rest(state: TrainState) -> dict[str, Any]:
    return {"adam": state.adam, "step": state.step}


def _save(
    checkpoints: TrainingCheckpoints, state: TrainState, step: int, memory: dict[str, Any], score: float | None
) -> None:
    checkpoints.save_async(step, state.params, _rest(state), memory, frozen=state.frozen, score=score)


def _evaluate(run: Run, state: TrainState) -> dict[str, float]:
    assert run.held_out is not None
    with Feed(run.held_out.dataset, run.held_out.plan, run.trainer.mesh, run.config.data) as feed:
        return evaluate(lambda batch: run.trainer.evaluate(state, batch), (fed.batch for fed in feed))


def _advise(run: Run, times: Goodput) -> None:
    """Warns, once, of devices that wait for data, those of other processes included."""
    if (sentence := advice(times.waiting(), run.config.data, os.cpu_count() or 1)) is not None and not times.warned:
        times.warned = True
        _say(f"warning: {sentence}")


@contextlib.contextmanager
def _account(times: Goodput) -> Iterator[None]:
    """Says where the time went also when an error ends the run, whose own line comes last."""
    try:
        yield
    except BaseException:
        _say(str(times))
        raise


class _Doctor:
    """Looks at the predictors now and then, and warns of what is new."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._said: set[str] = set()

    def examine(self, state: TrainState, batch: Batch) -> dict[str, float]:
        found = jax.device_get(self._run.trainer.health(state, batch))
        numbers = {name: float(value) for name, value in found.items() if value == value}
        found = health.warnings(numbers, self._run.subject.model.sparsity)
        for name, sentence in found.items():
            if name not in self._said:
                _say(f"warning: {sentence}")
        self._said = set(found)
        return {f"health/{name}": value for name, value in numbers.items()}


def _write_experiment(config: TrainConfig, options: Options) -> None:
    """For people; nothing reads it, and no run ends because it cannot be written."""
    if jax.process_index() == 0:
        file = epath.Path(options.workdir) / "experiment.json"
        try:
            file.write_text(json.dumps(to_json(config), indent=1) + "\n")
        except OSError as error:
            _log.warning("%s could not be written: %s", file, error.strerror or error)


def _tell_failures(fed: DeviceBatch) -> None:
    for failure in fed.failures:
        _log.warning("step %d goes without a sample: %s", fed.step + 1, failure)


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(f"dynllava: {line}", file=sys.stderr, flush=True)
