"""Downloads, cached and checked by hash."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pfcore._extras import optional


def download(addresses: Sequence[str], file: str, known_hash: str, folder: str = "") -> Path:
    """A file in the cache, downloaded if necessary; its hash is checked in either case.

    Args:
      addresses: tried in order, each ending in "/".
      file: its name, remote and local.
      known_hash: hash of its content, as Pooch takes it: a SHA-256, or "md5:" and an MD5.
      folder: subfolder of the cache.

    Raises:
      ConnectionError: no address could be read.
      ValueError: the last address that could be read has other content.
      OSError: the cache cannot be written.
    """
    with optional():
        import pooch
        import requests

    failures: list[str] = []
    kind: type[Exception] = ConnectionError
    cause: Exception | None = None
    for address in addresses:
        try:
            path = pooch.retrieve(
                address + file,
                known_hash=known_hash,
                fname=file,
                path=pooch.os_cache("pfcore") / folder,
                downloader=pooch.HTTPDownloader(
                    progressbar=sys.stderr.isatty(), chunk_size=2**16, timeout=30
                ),
            )
            return Path(path)
        # In this order: some of requests' errors are ValueErrors too.
        except requests.RequestException as error:
            cause = error
            if error.response is not None:
                error.response.close()
        except ValueError as error:
            kind, cause = ValueError, error
        failures.append(f"{address}{file}: {cause}")
    raise kind(f"could not fetch {file}. Tried {'; '.join(failures)}") from cause
