"""Reading records of adaptive-rates: what diverged, which rate was best, how sure one can be."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pfcore._checks import ArrayLike
from pfcore.records import Record


class Interval(NamedTuple):
    """A mean over seeds and how far it can be trusted.

    Attributes:
      mean: over the last axis.
      half_width: of the interval for the mean; NaN for a single value.
    """

    mean: np.ndarray
    half_width: np.ndarray


def interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    r"""Student's interval for a mean, $\bar x \pm t_{n-1}\, s/\sqrt n$, over the last axis.

    Args:
      values: [..., n], one for each seed.
      level: of confidence.

    Example:
      >>> from pfcore.experiments import analysis
      >>> mean, half_width = analysis.interval([1.0, 2.0, 3.0])
      >>> float(mean), round(float(half_width), 2)
      (2.0, 2.48)
    """
    values = np.asarray(values, float)
    n = values.shape[-1]
    if n == 1:
        return Interval(values[..., 0], np.full(values.shape[:-1], np.nan))
    error = np.std(values, axis=-1, ddof=1) / np.sqrt(n)
    return Interval(np.mean(values, axis=-1), error * special.stdtrit(n - 1, 0.5 + level / 2))


def joined(first: Record, *others: Record) -> Record:
    """One record of several that differ in their methods alone, such as a sweep and its extension.

    Args:
      first: whose provenance the result carries.
      *others: their methods follow those of the first.

    Raises:
      ValueError: the records differ in more than their methods.
    """
    config = first.info["config"]
    for other in others:
        for key, value in other.info["config"].items():
            if key != "methods" and value != config.get(key):
                raise ValueError(
                    f"the records differ in {key}: {config.get(key)!r} and {value!r}; "
                    "only their methods may differ"
                )
    records = (first, *others)
    arrays = {name: np.concatenate([r[name] for r in records]) for name in first.arrays}
    methods = [text for r in records for text in r.info["config"]["methods"]]
    fell = any(r.info["diverged"] for r in records)
    info = first.info | {"config": config | {"methods": methods}, "diverged": fell}
    return Record(arrays, info)


def diverged(record: Record) -> np.ndarray:
    """[methods, seeds]: whether a run ended above the loss at which it began, or in no number."""
    start, end = record["loss"][..., 0], record["loss"][..., -1]
    return np.asarray(~np.isfinite(end) | (end > start))


def tuned(record: Record, texts: Sequence[str]) -> str:
    """Of several methods the one whose training loss ends lowest in the mean over seeds; those that
    diverged with any seed are out.

    Args:
      record: of adaptive-rates.
      texts: methods of its configuration.

    Raises:
      ValueError: a method is not in the record, or all diverged.
    """
    methods = record.info["config"]["methods"]
    if missing := [text for text in texts if text not in methods]:
        raise ValueError(f"not in this record: {', '.join(missing)}; it has {', '.join(methods)}")
    fell = np.any(diverged(record), axis=1)
    candidates = [text for text in texts if not fell[methods.index(text)]]
    if not candidates:
        raise ValueError(f"all of {', '.join(texts)} diverged")
    ends = record["loss"][..., -1].astype(float).mean(axis=1)
    return min(candidates, key=lambda text: ends[methods.index(text)])
