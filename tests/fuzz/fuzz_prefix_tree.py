"""`make fuzz`: the prefix tree against its brute-force model over a million random operations."""

import argparse
import sys

from rich.progress import track
from tree_model import random_walk

BLOCK = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first block")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + -(-options.operations // BLOCK))
    for seed in track(seeds, description="prefix tree"):
        try:
            random_walk(BLOCK, seed)
        except AssertionError:
            again = f"{sys.argv[0]} --seed {seed} --operations {BLOCK}"
            print(f"failed; again with: python {again}", file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
