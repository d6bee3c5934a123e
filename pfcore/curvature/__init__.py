"""Hessian products, eigenpairs, spectral densities, traces and functions of the Hessian."""

from pfcore.curvature.dense import spectrum
from pfcore.curvature.density import SpectralDensity, spectral_density
from pfcore.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from pfcore.curvature.estimators import Estimate, diagonal, trace
from pfcore.curvature.hosted import over_batches, watched
from pfcore.curvature.krylov import FunctionProduct, apply_function, function_product
from pfcore.curvature.products import hvp, linearized_hvp
from pfcore.curvature.subsets import subset
from pfcore.curvature.tracking import Track, Tracker, TrackerState, track, tracker

__all__ = [
    "Eigenpairs",
    "Estimate",
    "FunctionProduct",
    "SpectralDensity",
    "Track",
    "Tracker",
    "TrackerState",
    "apply_function",
    "diagonal",
    "function_product",
    "hvp",
    "linearized_hvp",
    "over_batches",
    "spectral_density",
    "spectrum",
    "subset",
    "top_eigenpairs",
    "trace",
    "track",
    "tracker",
    "watched",
]
