"""Resumable runs: pieces of work with a checkpoint between them.

Work is cut at fixed places, and the state holds everything that a piece needs. A run that was
killed and resumed from its last checkpoint therefore gives the same result on the same machine.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pfcore import records
from pfcore._extras import optional
from pfcore.provenance import jsonable, note_source, provenance
from pfcore.runs import folder
from pfcore.runs.problems import TrainingProblem

State = Any  # a pytree of arrays


class Outcome(NamedTuple):
    """The result of a plan.

    Attributes:
      arrays: measured arrays by name.
      diverged_at_step: the first step at which the loss was not finite; None if there was none.
    """

    arrays: dict[str, np.ndarray]
    diverged_at_step: int | None = None


class Plan(NamedTuple):
    """An experiment, divided into pieces.

    Attributes:
      built: the problem to train.
      num_pieces: the most pieces to run.
      start: `start() -> State`, everything that the pieces need, with room for their results.
      advance: `advance(state, i) -> State`, piece i.
      outcome: `outcome(state) -> Outcome`, after the last piece or an early end.
      ended: `ended(state) -> bool`, whether to stop before the last piece because of divergence.
      show: `show(state) -> dict`, numbers for the progress bar.
    """

    built: TrainingProblem
    num_pieces: int
    start: Callable[[], State]
    advance: Callable[[State, int], State]
    outcome: Callable[[State], Outcome]
    ended: Callable[[State], bool] = lambda state: False
    show: Callable[[State], dict[str, str]] = lambda state: {}


class Interrupted(KeyboardInterrupt):
    """A run was stopped by the user; its last finished piece is kept."""

    def __init__(self, done: int, of: int):
        super().__init__(f"stopped after {done} of {of} pieces")
        self.done, self.of = done, of


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Defer Ctrl-C, and SIGTERM where it is handled, until the block is done.

    Orbax cannot save under a number again if it was interrupted while saving under it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for the main thread
        return
    came: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in usual.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in usual.items():
            if callable(handler):
                signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def execute(
    plan: Plan,
    run: dict[str, Any],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> records.Record:
    """Run a plan, with checkpoints if it has a folder.

    Args:
      plan: the plan.
      run: the experiment and its configuration, for the record.
      out: folder for checkpoints and record; None keeps the record in memory only.
      resume: continue from the last checkpoint in `out`.
      progress: show a progress bar.

    Returns:
      The record, which has been written to `out` if that is given.

    Raises:
      Interrupted: stopped by Ctrl-C (a `KeyboardInterrupt`), after the state was saved.
      OSError, ValueError, FileExistsError: the run cannot be stored in `out`; raised before it
        starts. With `resume`, another process that computes there is waited for.
    """
    if resume and out is None:
        raise ValueError("resume needs the folder to resume from (out)")
    if out is None:
        return _carried_out(plan, run, out, progress)
    with folder.reserve(out, run, resume=resume):
        if records.is_finished(out):
            record = records.read(out)
            folder.forget_run(out)
            return record
        return _carried_out(plan, run, out, progress)


def _carried_out(
    plan: Plan, run: dict[str, Any], out: str | Path | None, progress: bool
) -> records.Record:
    """The record of a plan, in a folder that is reserved, if there is one."""
    state = plan.start()
    checkpoints, done, before = None, 0, 0.0
    if out is not None:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        folder.begin(out, run, num_bytes=4 * size + 2**20)
        checkpoints = folder.Checkpoints(out)
        if (restored := checkpoints.restore((state, np.float64(0)))) is not None:
            done, (state, before) = restored
    began = time.perf_counter()
    with optional():
        from tqdm import tqdm
    bar = tqdm(total=plan.num_pieces, initial=done, disable=not progress, unit="piece")
    try:
        with bar:
            bar.set_postfix(plan.show(state))
            while done < plan.num_pieces and not plan.ended(state):
                state = jax.block_until_ready(plan.advance(state, done))
                with _undisturbed():
                    done += 1
                    if checkpoints is not None:
                        spent = np.float64(before + time.perf_counter() - began)
                        checkpoints.save(done, (state, spent))
                bar.update()
                bar.set_postfix(plan.show(state))
    except KeyboardInterrupt:
        if checkpoints is not None:
            checkpoints.close()
        raise Interrupted(done, plan.num_pieces) from None
    outcome = plan.outcome(state)
    info = {
        **run,
        "data": {"source": plan.built.source, "sha256": plan.built.sha256},
        "diverged": outcome.diverged_at_step is not None,
        "diverged_at_step": outcome.diverged_at_step,
        "wall_time_s": round(float(before) + time.perf_counter() - began, 3),
        **provenance(),
    }
    record = records.Record(outcome.arrays, jsonable(info))
    # The wall time is not part of the result, and differs in every run.
    note_source("computed record", **{k: v for k, v in info.items() if k != "wall_time_s"})
    if out is not None and checkpoints is not None:
        with _undisturbed():
            records.write(record, out)
            checkpoints.close()
            folder.forget_run(out)
    return record
