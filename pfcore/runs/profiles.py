"""Which size of experiment is asked for: quick for a laptop, full for a GPU."""

import os

PROFILE_VARIABLE = "PFCORE_PROFILE"


def profile_in_force() -> str:
    """The profile asked for by the environment variable `PFCORE_PROFILE`; "quick" if none is."""
    return os.environ.get(PROFILE_VARIABLE) or "quick"
