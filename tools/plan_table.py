"""Makes `docs/plan.md`: which machine a run or an answer fits on, as `dynllava plan` compiles it.

    python tools/plan_table.py               # makes the missing rows, each a JSON file in docs/plan
    python tools/plan_table.py --rows 1      # no more than one of them
    python tools/plan_table.py --write       # makes none, writes the document of those that are there

A row takes minutes. Its file appears only when it is done, so that a stopped run goes on where it was; delete it to
make the row again. Rows without a file are written as "not run". Exit status 1: rows are left.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.plan_page import page
from tools.plan_rows import Row, read, rows

ROOT = Path(__file__).parent.parent


def make(row: Row, folder: Path) -> None:
    """Runs a row and keeps what it reports, or the one line with which it is refused."""
    print(shlex.join(row.words), flush=True)
    unfinished = folder / f"{row.name}.unfinished"
    command = [sys.executable, "-m", "dynllava_jax.cli.main", *row.words[1:], f"--json={unfinished}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    unfinished.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not unfinished.exists():
        problem = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"  status {done.returncode}: {problem}", flush=True)
        if done.returncode != 2:  # killed, or ours to mend: not a row
            return
        reports = []
    else:
        problem = None
        reports = [json.loads(line) for line in unfinished.read_text().splitlines()]
    made = {"command": row.words, "jax": version("jax"), "problem": problem, "reports": reports}
    unfinished.write_text(json.dumps(made, indent=1) + "\n")
    unfinished.rename(folder / f"{row.name}.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "plan", help="of the rows (docs/plan)")
    parser.add_argument("--rows", type=int, help="make at most so many (all)")
    parser.add_argument("--write", action="store_true", help="write docs/plan.md")
    args = parser.parse_args()
    if args.rows is not None and args.rows < 0:
        parser.error(f"--rows must be 0 or more, not {args.rows}")
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = {row.name: row for row in rows()}.values()
    if args.write:
        (ROOT / "docs" / "plan.md").write_text(page(args.folder), encoding="utf-8")
        return 0
    missing = [row for row in asked if read(row, args.folder) is None]
    for row in missing[: args.rows]:
        make(row, args.folder)
    return 1 if any(read(row, args.folder) is None for row in missing) else 0


if __name__ == "__main__":
    sys.exit(main())
