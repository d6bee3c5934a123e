"""Continuous-time models of gradient descent: flows, Hessian spectra, stability."""

from pfcore import (
    curvature,
    datasets,
    experiments,
    flows,
    learning_rates,
    losses,
    networks,
    objectives,
    records,
    stability,
)
from pfcore.descent import gradient_descent
from pfcore.integrate import Trajectory, integrate

__version__ = "0.2.0"

__all__ = [
    "Trajectory",
    "curvature",
    "datasets",
    "experiments",
    "flows",
    "gradient_descent",
    "integrate",
    "learning_rates",
    "losses",
    "networks",
    "objectives",
    "records",
    "stability",
]
