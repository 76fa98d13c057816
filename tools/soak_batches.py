"""Holds random batches against their samples alone, as many as asked for.

    JAX_PLATFORMS=cpu python tools/soak_batches.py --batches 1000

Exit status 1 when a sample differs, or when more than 0.1 % of them needed the excuse of a near tie.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from tests.inference.random_batches import Figures, compare, make_engine


def main() -> int:
    parser = argparse.ArgumentParser(description="Random batches against their samples alone.")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    engine, rng, figures = make_engine(), np.random.default_rng(args.seed), Figures()
    for number in range(1, args.batches + 1):
        compare(engine, rng, figures)
        if number % 100 == 0:
            print(figures, flush=True)
    print(figures)
    return int(figures.exempted > 0.001 * figures.samples)


if __name__ == "__main__":
    sys.exit(main())
