"""Analyse records of adaptive-rates: divergence, the best rate, confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pfcore._checks import ArrayLike
from pfcore.records import Record


class Interval(NamedTuple):
    """A mean over seeds with its confidence interval.

    Attributes:
      mean: over the last axis.
      half_width: half the width of the interval; NaN for a single value.
    """

    mean: np.ndarray
    half_width: np.ndarray


def interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    r"""Student's confidence interval, $\bar x \pm t_{n-1}\, s/\sqrt n$, over the last axis.

    Args:
      values: [..., n], one for each seed.
      level: confidence level.

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
    """Join records that differ only in their methods, such as a sweep and its extension.

    Args:
      first: the record whose provenance the result has.
      *others: records whose methods are appended to those of the first.

    Raises:
      ValueError: the records differ in another setting.
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
    ends = [r.info["diverged_at_step"] for r in records if r.info["diverged"]]
    info = first.info | {
        "config": config | {"methods": methods},
        "diverged": bool(ends),
        "diverged_at_step": min(ends, default=None),
    }
    return Record(arrays, info)


def diverged(record: Record) -> np.ndarray:
    """[methods, seeds]: whether the final loss is above the initial one, or not finite."""
    start, end = record["loss"][..., 0], record["loss"][..., -1]
    return np.asarray(~np.isfinite(end) | (end > start))


def tuned(record: Record, texts: Sequence[str]) -> str:
    """The method with the lowest final training loss, averaged over seeds.

    Methods that diverged with any seed are excluded.

    Args:
      record: a record of adaptive-rates.
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
