"""Adaptive learning rates as Optax transformations, from drift, curvature or sharpness."""

from pfcore.learning_rates._cdat import ScaleByCdatState, cdat, scale_by_cdat
from pfcore.learning_rates._dal import ScaleByDalState, dal, scale_by_dal
from pfcore.learning_rates.sharpness import (
    ScaleBySharpnessState,
    scale_by_sharpness,
    sharpness_rate,
)

__all__ = [
    "ScaleByCdatState",
    "ScaleByDalState",
    "ScaleBySharpnessState",
    "cdat",
    "dal",
    "scale_by_cdat",
    "scale_by_dal",
    "scale_by_sharpness",
    "sharpness_rate",
]
