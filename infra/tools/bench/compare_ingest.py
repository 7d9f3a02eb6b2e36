"""Ingests a folder of images beside a plain copy of the same files: `infra/bench ingest`.

The plain way reads files, takes the SHA-256 of each and appends it to one file, which it flushes to the disk at the end as ours does
with every part; on one thread and on as many as ours, of which the faster counts. Ours also checks every image by reading it to its
end, and writes parts with labels and digests that searches and trainings read by ranges. All read the same files, which the system
has in its cache or not for all: each round reads them once before. Exit status 1 when a must is missed.
"""

import argparse
import collections
import hashlib
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from running import OURS, end, lines_of, program, provenance, table

PEER = "plain copy"
# Files that a thread of the peer reads at once.
BATCH = 256
# Images a second of ours by the peer's, and MiB.
LEAST_RATE = 0.8
MOST_MIB = 1024
ATTRIBUTES = 40


def read(images: Path, names: list[str]) -> list[tuple[bytes, str]]:
    files = [(images / name).read_bytes() for name in names]
    return [(data, hashlib.sha256(data).hexdigest()) for data in files]


def copy(folder: Path, out: Path, threads: int) -> None:
    """The peer's turn, in a process of its own: prints a line of JSON."""
    names = [line.split()[0] for line in (folder / "list_eval_partition.txt").read_text().splitlines()]
    images = folder / "img_align_celeba"
    begin = time.perf_counter()
    digests, size = [], 0
    with open(out, "wb") as whole, ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque()

        def write() -> None:
            nonlocal size
            for data, digest in waiting.popleft().result():
                digests.append(digest)
                whole.write(data)
                size += len(data)

        for first in range(0, len(names), BATCH):
            waiting.append(pool.submit(read, images, names[first : first + BATCH]))
            if len(waiting) > threads:
                write()
        while waiting:
            write()
        whole.flush()
        os.fsync(whole.fileno())
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {"work": "copy", "images": len(digests), "bytes": size, "threads": threads, "seconds": seconds}
    print(json.dumps(line | {"peak_mib": peak}))


def make(source: Path, folder: Path, count: int) -> None:
    """A folder as CelebA is distributed: the images of `source`, again and again, each a file of its own."""
    complete = folder / f"complete-{count}"
    if complete.exists():
        return
    print(f"bench: writing {count:,} images to {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "img_align_celeba").mkdir(parents=True)
    images = [path.read_bytes() for path in sorted(source.rglob("*.jpg"))]
    labels, splits = [f"{count}", " ".join(f"A{i}" for i in range(ATTRIBUTES))], []
    for row in range(count):
        name = f"{row + 1:06}.jpg"
        (folder / "img_align_celeba" / name).write_bytes(images[row % len(images)])
        labels.append(f"{name} {' '.join('1' if (row >> (i % 13)) & 1 else '-1' for i in range(ATTRIBUTES))}")
        splits.append(f"{name} {[0, 0, 0, 0, 0, 0, 0, 0, 1, 2][row % 10]}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(labels) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")
    complete.touch()


def main() -> None:
    parser = argparse.ArgumentParser(prog="infra/bench ingest", description=__doc__)
    parser.add_argument("--count", type=int, default=200_000, help="images (default: 200,000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of ours, and at most of the copy (default: all cores)")
    parser.add_argument("--copy", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help="JPEGs to take instead of drawn ones")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.copy:
        folder, out, threads = args.copy
        return copy(Path(folder), Path(out), int(threads))

    make(args.images, args.folder, args.count)
    threads = args.threads or os.cpu_count() or 1
    peers = {f"{PEER}, {count} threads": count for count in sorted({1, threads})}
    runs = []
    for _ in range(args.rounds):
        for engine in (OURS, *peers):
            with tempfile.TemporaryDirectory(dir=args.folder.parent) as out:
                if engine == OURS:
                    command = [program("ingest"), "ingest", str(args.folder), out, "--threads", str(threads)]
                else:
                    command = [sys.executable, __file__, "--copy", str(args.folder), str(Path(out) / "whole"), str(peers[engine])]
                for line in lines_of(command):
                    runs.append({"engine": engine} | line)
                    rate = line["images"] / line["seconds"]
                    print(f"  {engine:22} {line['seconds']:8.2f} s {rate:8.0f}/s {line['peak_mib']:8.0f} MiB", file=sys.stderr)

    median = lambda engine, figure: statistics.median(run[figure] for run in runs if run["engine"] == engine)
    fastest = min(peers, key=lambda peer: median(peer, "seconds"))
    mine, theirs = (args.count / median(engine, "seconds") for engine in (OURS, fastest))
    ratio, peak = mine / theirs, median(OURS, "peak_mib")
    rows = [
        ["images/s", f"{mine:.0f}", f"{theirs:.0f}", f"{ratio:.2f}", f"≥ {LEAST_RATE}"],
        ["peak MiB", f"{peak:.0f}", f"{median(fastest, 'peak_mib'):.0f}", "", f"≤ {MOST_MIB}"],
    ]
    print(table(["figure", OURS, fastest, "ratio", "must"], rows))
    record = provenance("ingest", []) | {"runs": runs}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    missed = [f"the rate is {ratio:.2f} of the plain copy's"] if ratio < LEAST_RATE else []
    if peak > MOST_MIB:
        missed.append(f"{peak:.0f} MiB of memory")
    end(missed)


if __name__ == "__main__":
    main()
