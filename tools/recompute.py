"""Recompute a stored record from its configuration.

    python tools/recompute.py book/records/edge-of-stability-17380fde --out _build/fresh

The same command resumes an interrupted computation.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax

from pfcore import experiments, records


def configuration(info: dict[str, Any]) -> Any:
    """The configuration of a record, for `pfcore.experiments.run`.

    Raises:
      ValueError: it has other settings than the current version of the experiment.
    """

    def restored(value: Any, like: Any) -> Any:
        if dataclasses.is_dataclass(like) and not isinstance(like, type):
            known = {field.name for field in dataclasses.fields(like)}
            if value.keys() != known:
                raise ValueError(f"settings are {sorted(value)}, today's are {sorted(known)}")
            fields = {key: restored(item, getattr(like, key)) for key, item in value.items()}
            return dataclasses.replace(like, **fields)
        return tuple(restored(item, None) for item in value) if isinstance(value, list) else value

    return restored(info["config"], experiments.configure(info["experiment"], profile="quick"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("record", type=Path, help="folder of the stored record")
    parser.add_argument("--out", type=Path, required=True, help="folder for the fresh one")
    args = parser.parse_args()
    info = json.loads((args.record / records.RECORD).read_text(encoding="utf-8"))
    config = configuration(info)
    jax.config.update("jax_enable_x64", config.problem.dtype == "float64")
    try:
        experiments.run(info["experiment"], config, out=args.out, resume=True, progress=True)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
