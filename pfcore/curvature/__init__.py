"""Eigenpairs, spectral densities, traces and functions of the Hessian and of other curvatures.

Routines take `(loss, params)` for the Hessian of a loss, or `(curvature, params)` for the
Gauss-Newton matrix, the Fisher matrix, one of them preconditioned, or a matrix of your own. Only
`critical_learning_rate`, which evaluates the loss itself, takes no curvature.

Float32 matrices are multiplied in float32 on a GPU and on a TPU too, unless the JAX setting
`jax_default_matmul_precision` asks for less; every error then includes its rounding.
"""

from pfcore.curvature.dense import spectrum
from pfcore.curvature.density import SpectralDensity, spectral_density
from pfcore.curvature.directional import (
    CriticalLearningRate,
    DirectionalSharpness,
    MinibatchSharpness,
    critical_learning_rate,
    directional_sharpness,
    minibatch_sharpness,
)
from pfcore.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from pfcore.curvature.estimators import Estimate, diagonal, trace
from pfcore.curvature.functionals import effective_dimension, log_determinant, trace_function
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
from pfcore.curvature.scales import optimizer_scale
from pfcore.curvature.subsets import subset
from pfcore.curvature.tracking import Track, Tracker, TrackerState, track, tracker

__all__ = [
    "CriticalLearningRate",
    "Curvature",
    "DirectionalSharpness",
    "Eigenpairs",
    "Estimate",
    "FunctionProduct",
    "MinibatchSharpness",
    "SpectralDensity",
    "Track",
    "Tracker",
    "TrackerState",
    "apply_function",
    "critical_learning_rate",
    "diagonal",
    "directional_sharpness",
    "effective_dimension",
    "empirical_fisher",
    "fisher",
    "function_product",
    "gauss_newton",
    "hvp",
    "linearized_hvp",
    "log_determinant",
    "minibatch_sharpness",
    "optimizer_scale",
    "over_batches",
    "preconditioned",
    "spectral_density",
    "spectrum",
    "subset",
    "symmetric",
    "top_eigenpairs",
    "trace",
    "trace_function",
    "track",
    "tracker",
    "watched",
]
