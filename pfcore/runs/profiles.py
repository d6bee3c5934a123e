"""The size of experiments: quick for a laptop, full for a GPU."""

import os

PROFILE_VARIABLE = "PFCORE_PROFILE"


def profile_in_force() -> str:
    """The value of the environment variable `PFCORE_PROFILE`; "quick" if it is not set."""
    return os.environ.get(PROFILE_VARIABLE) or "quick"
