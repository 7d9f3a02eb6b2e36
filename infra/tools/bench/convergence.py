"""Trains the same models with and without Winograd's convolutions and compares where they end: `infra/bench convergence`.

For each of a few seeds and both ways: a whole pipeline (train, embed, evaluate) on faces in CelebA's layout. What is
compared are the final validation loss and the mAP of the report's query sets. Two ways are told apart when the 95 % interval of
the difference of their means (Welch's, over the seeds) leaves out 0; exit status 1 when Winograd's way is then the worse one.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from machine import commit, processor

WAYS = ("off", "on")
LOSS = "validation loss"
# Two-sided 95 % quantiles of Student's distribution by degrees of freedom, 1 to 10.
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@contextlib.contextmanager
def running(binaries: Path, folder: Path, way: str) -> Iterator[None]:
    """Likeness on this machine, its workers convolving the one way."""
    with (folder / f"{way}.log").open("w") as log:
        up = subprocess.Popen(
            [binaries / "likeness", "up", folder / way, "--searchers", "0"],
            env=os.environ | {"LIKENESS_WINOGRAD": way},
            stdout=log,
            stderr=log,
        )
        try:
            wait_for(binaries, folder / way, up)
            yield
        finally:
            up.terminate()
            up.wait()


def wait_for(binaries: Path, folder: Path, up: subprocess.Popen) -> None:
    """Until it answers."""
    command = [binaries / "likeness", "status", "--up", folder]
    while subprocess.run(command, capture_output=True).returncode != 0:
        if up.poll() is not None:
            raise SystemExit(f"bench: `likeness up` ended with status {up.returncode}; see {folder}.log")
        time.sleep(0.2)


def likeness(binaries: Path, folder: Path, *words: str) -> str:
    command = [str(binaries / "likeness"), *words, "--up", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 2):
        raise SystemExit(f"bench: `{' '.join(command)}` ended with status {done.returncode}; see {folder}.log")
    return done.stdout


def outcome(binaries: Path, folder: Path, way: str, seed: int, epochs: int) -> dict[str, float]:
    """Trains one model; the gate's word does not matter here."""
    job = f"seed-{seed}"
    likeness(
        binaries, folder / way, "pipeline", "--alias", job, "--id", job, "--seed", str(seed), "--epochs", str(epochs)
    )
    model = json.loads((folder / way / "store" / "models" / job / "model.json").read_text())["body"]
    report = json.loads(likeness(binaries, folder / way, "report", "show", job, "--json"))
    maps = {f"mAP {row['set']}": row["map"] for row in report["headline"]}
    return {LOSS: model["validation_loss"], **maps}


def verdict(off: list[float], on: list[float], larger_is_better: bool) -> dict:
    """The difference of the means with its 95 % interval, and what it says."""
    difference = statistics.mean(on) - statistics.mean(off)
    variances = [statistics.variance(values) / len(values) for values in (off, on)]
    error = sum(variances) ** 0.5
    # Welch and Satterthwaite's degrees of freedom.
    freedom = sum(variances) ** 2 / sum(v**2 / (len(off) - 1) for v in variances) if error > 0 else 1
    half = STUDENT[min(max(int(freedom), 1), len(STUDENT)) - 1] * error
    worse = difference + half < 0 if larger_is_better else difference - half > 0
    return {"difference": difference, "interval": [difference - half, difference + half], "worse": worse}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", metavar="DIR", help="in CelebA's layout; the demo's drawn faces without")
    parser.add_argument("--binaries", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--demo", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("a spread needs two seeds or more")
    return args


def main() -> None:
    args = arguments()
    source = ["celeba", args.images] if args.images else ["parquet", *map(str, sorted(args.demo.glob("*.parquet")))]
    found = {way: [] for way in WAYS}
    # Kept until the next run, so that its logs can be read.
    folder = args.out.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for way in WAYS:
        with running(args.binaries, folder, way):
            likeness(args.binaries, folder / way, "ingest", *source, "--dataset", "faces")
            for seed in range(args.seeds):
                found[way].append(outcome(args.binaries, folder, way, seed, args.epochs))
                print(f"  winograd {way:3} seed {seed}: {found[way][-1]}", file=sys.stderr, flush=True)

    def values(way: str, figure: str) -> list[float]:
        return [run[figure] for run in found[way]]

    figures = list(found["off"][0])
    verdicts = {f: verdict(values("off", f), values("on", f), larger_is_better=f != LOSS) for f in figures}
    print("| figure | matrix products | Winograd | difference of the means | 95 % interval | verdict |")
    print("| --- | --- | --- | --- | --- | --- |")
    for figure, judged in verdicts.items():
        low, high = judged["interval"]
        seeds = [", ".join(f"{value:.4f}" for value in values(way, figure)) for way in WAYS]
        word = "worse" if judged["worse"] else "no worse"
        print(f"| {figure} | {seeds[0]} | {seeds[1]} | {judged['difference']:+.4f} | {low:+.4f} to {high:+.4f} | {word} |")
    run = {
        "command": f"infra/bench convergence --seeds {args.seeds} --epochs {args.epochs}",
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor(),
        "images": Path(args.images).name if args.images else "demo",
        "runs": found,
        "verdicts": verdicts,
    }
    args.out.write_text(json.dumps(run, indent=1) + "\n")
    print(f"\n{args.out}")
    if any(judged["worse"] for judged in verdicts.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
