"""Hessian products, spectra and functions of the Hessian."""

from pfcore.curvature.dense import spectrum
from pfcore.curvature.krylov import apply_function
from pfcore.curvature.products import hvp

__all__ = ["apply_function", "hvp", "spectrum"]
