"""Eigenpairs, spectral densities, traces and functions of the Hessian and of other curvatures.

Every routine takes `(loss, params)` for the Hessian of a loss, or `(curvature, params)` for the
Gauss-Newton matrix, the Fisher matrix, one of them preconditioned, or a matrix of your own.
"""

from pfcore.curvature.dense import spectrum
from pfcore.curvature.density import SpectralDensity, spectral_density
from pfcore.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from pfcore.curvature.estimators import Estimate, diagonal, trace
from pfcore.curvature.hosted import over_batches, watched
from pfcore.curvature.krylov import FunctionProduct, apply_function, function_product
from pfcore.curvature.matrices import (
    empirical_fisher,
    fisher,
    gauss_newton,
    preconditioned,
    symmetric,
)
from pfcore.curvature.products import Curvature, hvp, linearized_hvp
from pfcore.curvature.subsets import subset
from pfcore.curvature.tracking import Track, Tracker, TrackerState, track, tracker

__all__ = [
    "Curvature",
    "Eigenpairs",
    "Estimate",
    "FunctionProduct",
    "SpectralDensity",
    "Track",
    "Tracker",
    "TrackerState",
    "apply_function",
    "diagonal",
    "empirical_fisher",
    "fisher",
    "function_product",
    "gauss_newton",
    "hvp",
    "linearized_hvp",
    "over_batches",
    "preconditioned",
    "spectral_density",
    "spectrum",
    "subset",
    "symmetric",
    "top_eigenpairs",
    "trace",
    "track",
    "tracker",
    "watched",
]
