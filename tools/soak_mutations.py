"""Converts damaged checkpoints by the hundred: each is refused in one line or converted, and nothing is left behind.

    python tools/soak_mutations.py [--count 500] [--seed 0] [--verbose]

`tests/convert/test_mutations.py` is its short form.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.convert import mutations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    kinds: Counter[tuple[str, str]] = Counter()

    def told(what: str, line: str) -> None:
        kinds[re.match(r"_(\w+)", what)[1], "refused" if line else "converted"] += 1  # pyright: ignore[reportOptionalSubscript]
        if args.verbose:
            print(f"{what}\n    {line or 'converted'}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        refused = mutations.run(Path(scratch), args.count, args.seed, told)
    for (kind, result), count in sorted(kinds.items()):
        print(f"{kind:10} {result:10} {count:5}")
    print(
        f"{args.count} mutations of seed {args.seed}: {refused} refused in one line, {args.count - refused} converted"
    )


if __name__ == "__main__":
    main()
