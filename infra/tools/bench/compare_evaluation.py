"""Scores many queries over a large gallery beside NumPy's plain way: `infra/bench evaluation`.

The plain way holds the gallery, multiplies it with all queries, sorts every row of the products and takes the average precision
from where the relevant items are. Both engines have the same vectors and judgements; they find the same average precisions up to
items whose distances differ by less than a product in f32 tells. Exit status 1 when a must is missed.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from running import OURS, end, lines_of, program, provenance, table

PEER = "NumPy"
# Times of ours by the peer's, and memory.
MUSTS = {"seconds": 2.0, "peak_mib": 0.1}


def plain(folder: Path, threads: int) -> None:
    """NumPy's turn, in a process of its own: prints a line of JSON."""
    import numpy as np

    base, queries = np.load(folder / "base.npy"), np.load(folder / "query.npy")
    relevant = np.load(folder / "relevant.npy", mmap_mode="r")
    begin = time.perf_counter()
    order = np.argsort(-(queries @ base.T), axis=1)
    rank = np.arange(1, len(base) + 1)
    found = []
    for row, places in enumerate(order):
        ranked = relevant[row][places]
        found.append((np.cumsum(ranked, dtype=np.int64) / rank)[ranked == 1].mean())
    seconds = time.perf_counter() - begin
    difference = float(np.abs(np.array(found) - np.load(folder / "ap.npy")[:, 0]).max())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {"work": "evaluation", "rows": len(base), "queries": len(queries), "threads": threads}
    print(json.dumps(line | {"seconds": seconds, "peak_mib": peak, "map": float(np.mean(found)), "difference": difference}))


def alone(command: list[str], args: argparse.Namespace) -> None:
    """Ours without a peer: time and memory, beside the bytes of the gallery."""
    runs = [{"engine": OURS} | line for _ in range(args.rounds) for line in lines_of(command)]
    seconds, peak = (statistics.median(run[figure] for run in runs) for figure in ("seconds", "peak_mib"))
    size = args.rows * args.dim * 4 / 2**20
    print(table(["figure", OURS, "the gallery"], [["seconds", f"{seconds:.1f}", ""], ["peak_mib", f"{peak:.0f}", f"{size:.0f}"]]))
    args.out.write_text(json.dumps(provenance("evaluation", []) | {"runs": runs}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="infra/bench evaluation", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=300)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="only ours: for galleries that NumPy's way has no memory for")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        return plain(args.plain, args.threads)

    os.environ |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    words = [f"--{name}={getattr(args, name)}" for name in ("rows", "dim", "queries", "threads")]
    ours = [program("evaluation"), *(part for word in words for part in word.split("="))]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        if args.alone:
            return alone([*ours, "--gallery", folder], args)
        list(lines_of([*ours, "--write", folder]))
        numpy = [sys.executable, __file__, "--out", str(args.out), "--plain", folder, f"--threads={args.threads}"]
        for _ in range(args.rounds):
            for engine, command in ((OURS, ours), (PEER, numpy)):
                for line in lines_of(command):
                    runs.append({"engine": engine} | line)
                    print(f"  {engine:10} {line['seconds']:8.2f} s {line['peak_mib']:8.0f} MiB", file=sys.stderr)

    median = lambda engine, figure: statistics.median(run[figure] for run in runs if run["engine"] == engine)
    rows, missed = [], []
    for figure, must in MUSTS.items():
        mine, theirs = median(OURS, figure), median(PEER, figure)
        ratio = mine / theirs
        rows.append([figure, f"{mine:.1f}", f"{theirs:.1f}", f"{ratio:.2f}", f"≤ {must}"])
        if ratio > must:
            missed.append(f"{figure} is {ratio:.2f} times the peer's")
    print(table(["figure", OURS, PEER, "ratio", "must"], rows))
    difference = max(run["difference"] for run in runs if run["engine"] == PEER)
    print(f"largest difference of an average precision: {difference:.2g}")
    record = provenance("evaluation", ["numpy"]) | {"runs": runs}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    end(missed)


if __name__ == "__main__":
    main()
