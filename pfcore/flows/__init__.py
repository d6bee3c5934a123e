"""Continuous-time models of gradient descent."""

from pfcore.flows.central import CentralState, central_flow
from pfcore.flows.edge import EdgeState, edge_flow
from pfcore.flows.fixed import fixed_steps
from pfcore.flows.flow import Flow, SteppedFlow
from pfcore.flows.modified import (
    igr_flow,
    modified_flow,
    negative_gradient_flow,
    third_order_flow,
)
from pfcore.flows.principal import principal_flow
from pfcore.flows.registry import FLOWS, FlowEntry, named_flow
from pfcore.flows.rod import RodState, rod_flow
from pfcore.flows.two_frame import (
    Stepper,
    TwoFrameState,
    optax_step,
    two_frame_flow,
    two_frame_flow_of,
    two_frame_start,
)

__all__ = [
    "CentralState",
    "EdgeState",
    "Flow",
    "FlowEntry",
    "RodState",
    "SteppedFlow",
    "Stepper",
    "TwoFrameState",
    "central_flow",
    "edge_flow",
    "fixed_steps",
    "igr_flow",
    "modified_flow",
    "named_flow",
    "negative_gradient_flow",
    "optax_step",
    "principal_flow",
    "rod_flow",
    "third_order_flow",
    "two_frame_flow",
    "two_frame_flow_of",
    "two_frame_start",
]
