"""Checkpoints of a run: saved while it goes on, whole or not at all, checked when they are read again.

`checkpoint.trained` says what lies on disk and why damage cannot pass; this file writes and resumes.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
from etils import epath

from dynllava_jax.checkpoint import checksums, orbax_items, store, trained
from dynllava_jax.checkpoint.leaves import targets
from dynllava_jax.checkpoint.paths import AnyPath, as_path
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import LoraConfig
from dynllava_jax.data.tokenizer import FILES as TOKENIZER_FILES
from dynllava_jax.errors import InputError
from dynllava_jax.training import processes
from dynllava_jax.training.retention import best, superfluous
from dynllava_jax.training.trees import flatten, placed_shapes, unflatten

_KEPT_FILES = (*TOKENIZER_FILES, *store.SOURCE_FILES, *(f"vision_tower/{name}" for name in store.TOWER_FILES))

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `TrainingCheckpoints.restore` gives; `frozen` is what the checkpoint has of them, by path."""

    info: trained.Info
    params: Any
    rest: Any
    frozen: dict[str, jax.Array]


class TrainingCheckpoints:
    """The checkpoints in `WORKDIR/checkpoints`. Every process of a run makes one and calls it at the same steps.

    State goes in as any pytree of arrays, `nnx.State` included, and comes back as the tree that `restore` is given.
    As a context manager it waits for the last save at the end.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: ModelConfig,
        *,
        keep: int = 2,
        keep_best: bool = True,
        init: epath.PathLike | None = None,
        files: str | AnyPath | None = None,
        made: Collection[str] = (),
        lora: LoraConfig | None = None,
    ) -> None:
        """Clears away what a killed run left incomplete.

        Args:
            workdir: of the run, seen by all processes; created if need be.
            config: of the model, so that `dynllava_jax.load(workdir)` can read it.
            keep: newest checkpoints that stay.
            keep_best: whether the one with the lowest score stays too.
            init: checkpoint that frozen parameters come from unchanged.
            files: folder with tokenizer and source files, copied to `WORKDIR/files` once; None: those of `init`.
            made: parameters that do not come from `init` although it may have them.
            lora: of the run, without which its adapters could not be merged.

        Raises:
            InputError: `init` is no checkpoint, or the folder cannot be written.
        """
        self._workdir = epath.Path(workdir)
        self._folder = self._workdir / trained.CHECKPOINTS
        self._config, self._lora = config, lora
        self._keep, self._keep_best = keep, keep_best
        source = None if init is None else open_source(init)
        self._facts = {} if source is None else source.facts
        self._init = {}
        if source is not None:
            self._init = {"path": str(epath.Path(as_path(str(init))).absolute()), "content_hash": source.content_hash}
        elsewhere = {} if source is None else source.shapes
        complete = {target.path for target in targets(config) if all(leaf in elsewhere for leaf in target.leaves)}
        self._elsewhere = complete.difference(made)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._current: int | None = None
        self._replaceable: set[int] = set()
        error = None
        if processes.is_first():
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                trained.check_writable(self._folder)
                self._clear()
                self._copy_files(files or (None if source is None else source.files))
            except OSError as failure:
                reason = failure.strerror or failure
                error = InputError(f"{self._folder} cannot be written: {reason}; nothing could be saved there.")
        processes.raise_together(error)

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._pending is not None and (failure := self._pending.exception()) is not None:
            _log.error("the last checkpoint was not written either: %s", failure)
        self._thread.shutdown()

    def steps(self) -> tuple[int, ...]:
        """Steps of the whole checkpoints, ascending; not of one that is still being written."""
        return trained.steps(self._folder)

    def info(self, step: int) -> trained.Info:
        """What is known of a whole checkpoint without reading its arrays.

        Raises:
            InputError: no such checkpoint, or one of its small files is damaged.
        """
        if step not in self.steps():
            raise InputError(f"{self._folder} has no whole checkpoint of step {step}; there are {self._spell()}.")
        try:
            return trained.read_info(self._folder / str(step))
        except trained.DamageError as error:
            raise self._or_else(error, step) from None

    def other_init(self, info: trained.Info, frozen: Collection[str]) -> list[str]:
        """What differs, in words, if `init` is not where a checkpoint has those of `frozen` from that it lacks."""
        inherited = set(frozen).difference(info.items.get(trained.FROZEN, ()))
        if not inherited or info.init.get("content_hash") == self._init.get("content_hash"):
            return []
        now = f"{self._init['path']} with other content" if self._init else "no checkpoint"
        return [f"the frozen parameters came from {info.init.get('path')} and would come from {now}"]

    def best(self) -> int | None:
        """The step with the lowest score, the latest of several; None without scores."""
        return best(self._scores())

    def save_async(
        self,
        step: int,
        params: Any,
        rest: Any,
        data: Mapping[str, Any],
        *,
        frozen: Any = None,
        score: float | None = None,
    ) -> None:
        """Begins to write a checkpoint; the arrays may be donated as soon as it returns. Collective.

        Nothing is written for the step that was saved or restored last: it is there.

        Args:
            step: optimizer steps done.
            params: the trained parameters.
            rest: what else the run needs, such as moments and step.
            data: plain JSON values to find again in `info(step).data`, such as fingerprints of config and data.
            frozen: the other parameters, of which those are written that are not those of `init`.
            score: held-out loss.

        Raises:
            InputError: the save before failed, or the step has a checkpoint already.
        """
        self.wait()
        path = self._folder / str(step)
        if step == self._current:
            return
        if step in self.steps() and step not in self._replaceable:
            raise InputError(f"{path} is a whole checkpoint already and is not written again.")
        items = {trained.PARAMS: flatten(params), trained.STATE: flatten(rest)}
        if kept := {name: leaf for name, leaf in flatten(frozen).items() if name not in self._elsewhere}:
            items[trained.FROZEN] = kept
        info = trained.Info(
            step=step,
            score=score if score is not None and math.isfinite(score) else None,
            config=self._config,
            init=self._init,
            facts=self._facts,
            versions=store.package_versions(),
            data=data,
            lora=self._lora,
        )
        described = {item: checksums.describe(leaves) for item, leaves in items.items()}
        try:
            if processes.is_first():
                # Where Orbax cannot make its folder, it leaves threads behind that keep the process from ending.
                trained.check_writable(self._folder)
                if path.exists():
                    trained.remove(path)
            written = orbax_items.save_async(path, items)
        except Exception as error:
            raise self._not_written(path, error) from error
        self._current = step
        self._pending = self._thread.submit(self._finish, path, written, info, described)

    def wait(self, *, together: bool = True) -> None:
        """Waits for the save in progress. Collective.

        Args:
            together: False where the other processes do not come: this one's part of the save is waited for.

        Raises:
            InputError: it failed on this process. That ends the others (`processes.shared_fate`), which wait here.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        # Not together: where this process's part of a save fails, Orbax has the others wait for it, and they cannot be
        # asked.
        if (error := pending.exception()) is not None:
            raise error
        if together:
            processes.raise_together(None)

    def check(self) -> None:
        """Says early that the save in progress has failed on this process; does not wait.

        Raises:
            InputError: it has.
        """
        if self._pending is not None and self._pending.done() and (error := self._pending.exception()) is not None:
            self._pending = None
            raise error

    def restore(self, step: int | None, params: Any, rest: Any, frozen: Any = None) -> Restored:
        """Reads a checkpoint onto devices and checks every array. Collective.

        Args:
            step: which one; None: the newest. A damaged one is never passed over in silence: to use an older one, name
                it. The next save then takes the place of everything after it.
            params: what to read, as arrays or `jax.ShapeDtypeStruct`s with the shardings wanted, on any mesh.
            rest: likewise.
            frozen: likewise; those are read that the checkpoint has.

        Raises:
            InputError: no such checkpoint; another shape or dtype than asked for; a damaged file or array, by name.
        """
        self.wait()
        step = self._choose(step)
        path = self._folder / str(step)
        error, info, like = None, None, {}
        try:
            info = self.info(step)
            like = {trained.PARAMS: placed_shapes(params), trained.STATE: placed_shapes(rest)}
            if kept := info.items.get(trained.FROZEN):
                like[trained.FROZEN] = {name: leaf for name, leaf in placed_shapes(frozen).items() if name in kept}
            _check_shapes(path, info, like)
        except InputError as failure:
            error = failure
        processes.raise_together(error)
        assert info is not None
        loaded = self._read(path, info, like)
        self._replaceable = {later for later in self.steps() if later > step}
        if self._replaceable:
            _log.warning(
                "going on from step %d on request: the next checkpoint replaces those after it (%s)",
                step,
                ", ".join(map(str, sorted(self._replaceable))),
            )
        self._current = step
        return Restored(
            info=info,
            params=unflatten(params, loaded[trained.PARAMS]),
            rest=unflatten(rest, loaded[trained.STATE]),
            frozen=loaded.get(trained.FROZEN, {}),
        )

    def _choose(self, step: int | None) -> int:
        if step is None:
            found = self.steps()
            step = processes.same(found[-1] if found else -1)
        if step < 0:
            raise InputError(f"{self._folder} has no whole checkpoint to resume from.")
        return step

    def _read(self, path: epath.Path, info: trained.Info, like: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
        error, loaded = None, {}
        try:
            loaded = orbax_items.restore(path, like)
        except InputError as failure:
            error = self._or_else(failure, info.step)
        processes.raise_together(error)
        wrong = [
            f"{item}/{name}"
            for item, leaves in loaded.items()
            for name, found in checksums.finish(checksums.describe(leaves)).items()
            if found != info.items[item][name]
        ]
        try:
            trained.check_arrays(path, wrong)
        except trained.DamageError as failure:
            raise self._or_else(failure, info.step) from None
        return loaded

    def _or_else(self, error: InputError, step: int) -> InputError:
        """The same error, with the way out."""
        before = [other for other in self.steps() if other < step]
        if not before:
            return InputError(f"{error}; there is none before it: start again in another work folder.")
        return InputError(f"{error}; to go on from the one before it, ask for it: --restore={before[-1]}.")

    def _not_written(self, path: epath.Path, error: Exception) -> InputError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        saved = []
        with contextlib.suppress(OSError):  # the folder may be gone altogether
            saved = [step for step in self.steps() if step != int(path.name)]
        then = f"goes on from step {saved[-1]}" if saved else "begins anew"
        return InputError(
            f"Checkpoint {path} could not be written: {reason}; see to it that the folder has room and may be written, "
            f"then the same command {then}."
        )

    def _spell(self) -> str:
        return ", ".join(map(str, self.steps())) or "none"

    def _scores(self) -> dict[int, float | None]:
        return {step: trained.read_score(self._folder / str(step)) for step in self.steps()}

    def _finish(
        self, path: epath.Path, written: Callable[[], None], info: trained.Info, described: Mapping[str, Any]
    ) -> None:
        """Runs in the background: makes what Orbax writes a checkpoint, then removes those that may go."""
        try:
            written()
            items = {item: checksums.finish(leaves) for item, leaves in described.items()}
            if processes.is_first():
                trained.seal(path, dataclasses.replace(info, items=items))
                self._retire(info.step)
        except Exception as error:
            raise self._not_written(path, error) from error
        self._replaceable = set()

    def _retire(self, newest: int) -> None:
        scores = self._scores()
        gone = {step for step in self._replaceable if step != newest and step in scores}
        kept = {step: score for step, score in scores.items() if step not in gone}
        for step in sorted(gone | superfluous(kept, self._keep, self._keep_best)):
            trained.remove(self._folder / str(step))
            _log.info("removed checkpoint %s", self._folder / str(step))

    def _clear(self) -> None:
        # On a bucket there is no folder before something lies in it.
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if trained.is_incomplete(path):
                _log.warning("removed %s, which a run that was killed had left incomplete", path)
                path.rmtree()

    def _copy_files(self, folder: str | AnyPath | None) -> None:
        if folder is None or (self._workdir / trained.FILES).exists():
            return
        partial = self._workdir / f"{trained.FILES}.tmp"
        if partial.exists():
            partial.rmtree()
        for name in _KEPT_FILES:  # a folder of init.tokenizer's may hold weights, or anything
            if (file := epath.Path(folder) / name).is_file():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(file.read_bytes())
        if partial.exists():
            partial.rename(self._workdir / trained.FILES)


def _check_shapes(path: epath.Path, info: trained.Info, like: Mapping[str, Mapping[str, Any]]) -> None:
    problems = []
    for item, leaves in like.items():
        stored = info.items[item]
        problems += [f"{item}/{name} is not in it" for name in leaves if name not in stored]
        problems += [f"{item}/{name} is not part of this run" for name in stored if name not in leaves]
        for name, leaf in leaves.items():
            found = (stored[name]["dtype"], tuple(stored[name]["shape"])) if name in stored else None
            if found not in (None, (leaf.dtype.name, leaf.shape)):
                problems.append(f"{item}/{name} is {found[0]}{list(found[1])}, not {leaf.dtype.name}{list(leaf.shape)}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"{path} does not fit this run's config: {'; '.join(problems[:5])}{more}.")
