"""Continuous-time models of gradient descent: flows, Hessian spectra, stability.

Submodules are imported on first use; `import pfcore` alone loads none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfcore import (
        claims,
        curvature,
        datasets,
        experiments,
        figures,
        flows,
        learning_rates,
        losses,
        networks,
        objectives,
        paths,
        records,
        stability,
    )
    from pfcore._integrate import Trajectory, follow, integrate
    from pfcore.descent import gradient_descent

__version__ = "0.3.0"

# The modules of the names that are not submodules.
_HOMES = {
    "Trajectory": "pfcore._integrate",
    "follow": "pfcore._integrate",
    "gradient_descent": "pfcore.descent",
    "integrate": "pfcore._integrate",
}

__all__ = [
    "Trajectory",
    "claims",
    "curvature",
    "datasets",
    "experiments",
    "figures",
    "flows",
    "follow",
    "gradient_descent",
    "integrate",
    "learning_rates",
    "losses",
    "networks",
    "objectives",
    "paths",
    "records",
    "stability",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in __all__:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
