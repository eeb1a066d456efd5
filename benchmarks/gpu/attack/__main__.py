"""One call of an op on a card: that of a seed between guard bands, or its smallest sample."""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.gpu.attack import fuzz, sanitizer
from benchmarks.gpu.attack.exhaustion import smallest
from benchmarks.shapes import all_benches
from tests import draws


def main(arguments: list[str] | None = None) -> int:
    """Run it; 0 done, 1 it is wrong, 2 the backend takes no such call."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.attack", description=__doc__)
    parser.add_argument("op", choices=draws.DRAWS, metavar="OP")
    parser.add_argument("--backend", required=True, choices=("triton", "cuda"))
    parser.add_argument("--seed", type=int, help="of a random call; the smallest sample otherwise")
    parser.add_argument("--device", type=torch.device, default="cuda")
    options = parser.parse_args(arguments)
    case = all_benches()[options.op]
    if options.seed is not None:
        if options.backend not in fuzz.card_backends(case, options.seed, options.device):
            print(f"{options.op}: {options.backend} does not take the call of this seed")
            return 2
        try:
            fuzz.check(case, options.backend, options.seed, options.device)
        except AssertionError as error:
            print(error)
            return 1
    else:
        call = smallest(case, options.backend, options.device)
        if call is None:
            print(f"{options.op}: {options.backend} takes no sample")
            return 2
        fuzz.outputs(case, call, options.backend, 0)
    fuzz.probe(options.device)
    print(sanitizer.RAN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
