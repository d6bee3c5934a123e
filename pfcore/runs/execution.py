"""Runs that last: pieces of work with a checkpoint between them, which can be taken up again.

Work is cut at fixed places, and whatever a piece needs is in the state. So a run that was killed,
and goes on from its last checkpoint, does on the same machine exactly what it would have done.
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
    """What a run measured.

    Attributes:
      arrays: by name.
      diverged_at_step: the first step at which the loss was not finite; None if there was none.
    """

    arrays: dict[str, np.ndarray]
    diverged_at_step: int | None = None


class Plan(NamedTuple):
    """An experiment, cut into pieces.

    Attributes:
      built: the problem that it trains.
      num_pieces: how many pieces at most.
      start: `start() -> State`, everything that the pieces need, and room for what they measure.
      advance: `advance(state, i) -> State`, piece i.
      outcome: `outcome(state) -> Outcome`, after the last piece, or where it ended early.
      ended: `ended(state) -> bool`, whether to stop before the last piece: it diverged.
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
    """Ctrl-C, and SIGTERM where it is caught, wait until the block is done.

    Orbax cannot store under a number again where it was interrupted in the middle of it.
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
    """Carry out a plan, with checkpoints where it is to be kept.

    Args:
      plan: what to do.
      run: the experiment and its configuration, for the record.
      out: folder for checkpoints and record; None keeps the record in memory only.
      resume: go on from the last checkpoint in `out`.
      progress: show a bar.

    Returns:
      The record, which has been written if there is an `out`.

    Raises:
      Interrupted: stopped by Ctrl-C (a `KeyboardInterrupt`), after the state was saved.
      OSError, ValueError, FileExistsError: the run cannot be kept in `out`; said before it begins.
    """
    if resume and out is None:
        raise ValueError("resume needs the folder to resume from (out)")
    if out is not None:
        folder.reserve(out, run, resume=resume)
        if records.is_finished(out):
            record = records.read(out)
            folder.forget_run(out)
            return record
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
    # How long it took says nothing of what was computed, and is never the same twice.
    note_source("computed record", **{k: v for k, v in info.items() if k != "wall_time_s"})
    if out is not None and checkpoints is not None:
        with _undisturbed():
            records.write(record, out)
            checkpoints.close()
            folder.forget_run(out)
    return record
