"""Continuous-time models of gradient descent."""

from pfcore.flows.flow import Flow, SteppedFlow
from pfcore.flows.modified import (
    igr_flow,
    modified_flow,
    negative_gradient_flow,
    third_order_flow,
)
from pfcore.flows.named import named_flow
from pfcore.flows.principal import principal_flow

__all__ = [
    "Flow",
    "SteppedFlow",
    "igr_flow",
    "modified_flow",
    "named_flow",
    "negative_gradient_flow",
    "principal_flow",
    "third_order_flow",
]
