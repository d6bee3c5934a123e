"""Optional dependencies, and the extra that installs each."""

import contextlib
from collections.abc import Iterator

# By import name.
EXTRAS = {
    "PIL": "figures",
    "filelock": "runs",
    "matplotlib": "figures",
    "mpl_toolkits": "figures",
    "orbax": "runs",
    "pooch": "runs",
    "sklearn": "runs",
    "tqdm": "runs",
    "typer": "runs",
}


@contextlib.contextmanager
def optional() -> Iterator[None]:
    """For imports of packages that may be missing: the error names the extra that installs them.

    Raises:
      ModuleNotFoundError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise ModuleNotFoundError(
            f"{package} is not installed but required here; "
            f'install it with: pip install "pfcore[{EXTRAS[package]}]"',
            name=error.name,
        ) from error
