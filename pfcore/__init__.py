"""Continuous-time models of gradient descent: flows, Hessian spectra, stability."""

from pfcore import curvature, datasets, flows, losses, networks, objectives, stability
from pfcore.descent import gradient_descent
from pfcore.integrate import Trajectory, integrate

__version__ = "0.1.0"

__all__ = [
    "Trajectory",
    "curvature",
    "datasets",
    "flows",
    "gradient_descent",
    "integrate",
    "losses",
    "networks",
    "objectives",
    "stability",
]
