"""Embeds a dataset version in full and after an earlier one that differs in few rows: `infra/bench embedding`.

Both in one process, in turns, from parts in a store on disk to the generation's manifest, with the shards and approximate indexes
of a plain `likeness embed`; the shards must be the same bytes. Changed rows are spread evenly over all shards, or as many are
appended. Exit status 1 when a must is missed.
"""

import argparse
import json
import sys
from pathlib import Path

from running import end, lines_of, program, provenance, table

# Time of a run after an earlier one by that of a full run, with 1 % of the rows changed.
MUST = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(prog="infra/bench embedding", description=__doc__)
    parser.add_argument("--architecture", choices=["cnn-s", "resnet18"], default="cnn-s")
    parser.add_argument("--rows", type=int, help="at most so many images [default: all]")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()

    command = [program("incremental"), str(args.images), "--architecture", args.architecture]
    command += ["--repetitions", str(args.repetitions), "--threads", str(args.threads)]
    command += ["--rows", str(args.rows)] if args.rows else []
    rows, missed, runs = [], [], list(lines_of(command))
    for run in runs:
        for what, word in (("changed", "spread over all shards"), ("appended", "appended")):
            share = run[f"{what}_share"]
            name = f"{run['architecture']}, {run['changed']} of {run['rows']:,} rows {word}"
            rows.append([name, f"{run['full_s']:.2f} s", f"{run[f'{what}_s']:.3f} s", f"{share:.1%}", f"≤ {MUST:.0%}"])
            if share > MUST:
                missed.append(f"{name}: {share:.1%} of a full run")
    print(table(["new", "full", "after an earlier one", "share", "must"], rows))
    args.out.write_text(json.dumps(provenance("embedding", []) | {"runs": runs}, indent=1) + "\n")
    end(missed)


if __name__ == "__main__":
    sys.exit(main())
