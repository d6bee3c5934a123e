"""Write the predicted memory of the full profiles to `book/memory.json`.

    python tools/memory.py [NAME ...]

For every problem of the full profile, or those named, the training program with `NUM_EIGENPAIRS`
tracked eigenpairs is compiled, but not run. This takes minutes for the deep networks. Run it when a
problem changes.
"""

import argparse
import json
import sys
from pathlib import Path

import jax

from pfcore import records
from pfcore.runs.memory import predict
from pfcore.runs.problems import PROBLEMS

PATH = Path(__file__).resolve().parent.parent / "book" / "memory.json"
NUM_EIGENPAIRS = 10  # as in the full profile of edge-of-stability


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="problems; by default all")
    names = parser.parse_args(arguments).names or list(PROBLEMS["full"])
    content = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}
    known = content.get("problems", {})
    for name in names:
        problem = PROBLEMS["full"][name]
        found = predict(problem, num_eigenpairs=NUM_EIGENPAIRS)
        known[name] = {
            "problem": records.jsonable(problem),
            "num_params": found.num_params,
            "megabytes": round(found.total / 1e6),
        }
        print(f"{name}: {found.num_params:,} parameters, {found.total / 1e9:.2f} GB", flush=True)
    content = {
        "num_eigenpairs": NUM_EIGENPAIRS,
        "compiled": f"JAX {jax.__version__} for {jax.default_backend()}",
        "problems": {name: known[name] for name in PROBLEMS["full"] if name in known},
    }
    PATH.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
