"""Write how much memory the full profiles are predicted to take: `book/memory.json`.

    python tools/memory.py [NAME ...]

For every problem of the full profile, or those named, the program that trains it with
`NUM_EIGENPAIRS` directions followed is compiled, which takes minutes for the deep networks; nothing
is run. To be called when one of them changes.
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
NUM_EIGENPAIRS = 10  # as edge-of-stability's full profile has


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
