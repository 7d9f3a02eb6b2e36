"""Runs our bench programs and the peers in turn and prints the table of `infra/bench kernels`.

Every engine runs in a process of its own, one after the other, for several rounds; what counts is the median over the rounds, so
that a busy moment of the machine meets everybody. Exit status 1 when a must is missed.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from running import HERE, OURS, end, lines_of, program, provenance, table
from works import DECODES, NETWORKS

# Rounds × repetitions is how often an engine does a work.
REPETITIONS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table: what our figure is compared with, and how far it has to be ahead."""

    name: str
    work: str
    must: float
    aim: float
    # Engines that the must is about, and those of the aim.
    against: tuple[str, ...]
    aim_against: tuple[str, ...] = ()
    memory: bool = False


PYTORCH = ("PyTorch NCHW", "PyTorch channels-last")
FORWARD = (*PYTORCH, "ONNX Runtime")
PILLOW, FASTER = ("Pillow", "Pillow draft"), ("OpenCV", "OpenCV reduced", "torchvision")
EMBED = "embed-resnet18-64"

ROWS = [
    Row("ResNet-18 64 px forward, batch 64", "resnet18-64-forward-b64", 1.5, 2.0, FORWARD),
    Row("ResNet-18 64 px forward, batch 8", "resnet18-64-forward-b8", 1.2, 1.6, FORWARD),
    Row("ResNet-18 224 px forward, batch 8", "resnet18-224-forward-b8", 1.2, 1.4, FORWARD),
    Row("ResNet-50 224 px forward, batch 8", "resnet50-224-forward-b8", 1.0, 1.3, FORWARD),
    Row("ResNet-50 224 px forward, batch 32", "resnet50-224-forward-b32", 1.0, 1.2, FORWARD),
    Row("ResNet-18 64 px training step, batch 64", "resnet18-64-train-b64", 2.0, 2.5, PYTORCH),
    Row("ResNet-50 224 px training step, batch 8", "resnet50-224-train-b8", 1.2, 1.5, PYTORCH),
    Row("decode 178×218 to 64, one thread", "decode-178x218-64", 1.3, 1.0, PILLOW, FASTER),
    Row("decode 500×500 to 224, one thread", "decode-500x500-224", 1.3, 1.0, PILLOW, FASTER),
    Row("embed, Parquet to shard, beside the bare forward", EMBED, 0.8, 0.9, ("bare forward",)),
    Row("peak memory, ResNet-18 training step", "resnet18-64-train-b64", 1.0, 1 / 0.7, PYTORCH, memory=True),
    Row("peak memory, ResNet-50 training step", "resnet50-224-train-b8", 1.0, 1 / 0.7, PYTORCH, memory=True),
]


@dataclass(frozen=True)
class Settings:
    images: Path
    models: Path
    threads: int
    repetitions: int


def commands(work: str, settings: Settings) -> Iterator[list[str]]:
    """What is run for a work, ours first; each command prints one line of JSON."""
    python = [sys.executable]
    counted = ["--repetitions", str(settings.repetitions)]
    threads = ["--threads", str(settings.threads)]
    if work in DECODES:
        images = str(settings.images)
        yield [program("decode"), work, images, *counted]
        for engine in (*PILLOW, *FASTER):
            yield [*python, str(HERE / "decode.py"), engine, work, images, *counted]
    elif work == EMBED:
        yield [program("embed"), work, str(settings.images), *counted, *threads]
    elif work in NETWORKS:
        yield [program("network"), work, *counted, *threads]
        for layout in ("nchw", "channels-last"):
            yield [*python, str(HERE / "pytorch.py"), work, "--layout", layout, *counted, *threads]
        if not NETWORKS[work].training:
            yield [*python, str(HERE / "onnx_runtime.py"), work, str(settings.models), *counted, *threads]


def measure(works: Iterable[str], settings: Settings, rounds: int) -> list[dict]:
    """Every line of every round."""
    lines = []
    for work in works:
        for number in range(rounds):
            for command in commands(work, settings):
                for line in lines_of(command):
                    lines.append({**line, "round": number})
                    print(f"  {line['work']:26} {line['engine']:22} {line['median_ms']:10.2f} ms", file=sys.stderr)
    return lines


def summary(lines: list[dict]) -> dict[str, dict[str, dict]]:
    """Per work and engine: the median of the rounds' medians, the best of all, the largest peak."""
    by_engine = defaultdict(list)
    for line in lines:
        by_engine[line["work"], line["engine"]].append(line)
    works: dict[str, dict[str, dict]] = defaultdict(dict)
    for (work, engine), rounds in by_engine.items():
        works[work][engine] = {
            "median_ms": statistics.median(line["median_ms"] for line in rounds),
            "best_ms": min(line["best_ms"] for line in rounds),
            "peak_rss_mb": max(line["peak_rss_mb"] for line in rounds),
            "repetitions": sum(line["repetitions"] for line in rounds),
            "items": rounds[0].get("items") or (NETWORKS[work].batch if work in NETWORKS else None),
        }
    return works


def verdict(row: Row, engines: dict[str, dict]) -> dict | None:
    """How far ahead we are of the best of those that count; above 1 we take less."""
    figure = "peak_rss_mb" if row.memory else "median_ms"
    if OURS not in engines:
        return None
    ours = engines[OURS][figure]

    def ahead(names: tuple[str, ...]) -> float | None:
        there = [engines[name][figure] for name in names if name in engines]
        return min(there) / ours if there else None

    ratio, aim_ratio = ahead(row.against), ahead(row.aim_against or row.against)
    if ratio is None or aim_ratio is None:
        return None
    # Both count for the aim: what is ahead of the faster peers has to have passed the must.
    reached = "missed" if ratio < row.must else "aim" if aim_ratio >= row.aim else "must"
    return {"ratio": ratio, "aim_ratio": aim_ratio, "verdict": reached}


def cells(row: Row, engines: dict[str, dict], judged: dict) -> list[str]:
    def figure(engine: str) -> str:
        values = engines[engine]
        if row.memory:
            return f"{values['peak_rss_mb']:.0f} MB"
        if values["items"] and (row.work in DECODES or row.work == EMBED):
            return f"{1e3 * values['items'] / values['median_ms']:.0f}/s"
        return f"{values['median_ms']:.1f}/{values['best_ms']:.1f}"

    peers = "; ".join(f"{name} {figure(name)}" for name in engines if name != OURS)
    ratio, aim_ratio = f"{judged['ratio']:.2f}", f"{judged['aim_ratio']:.2f}"
    ratio = ratio if not row.aim_against else f"{ratio} ({aim_ratio} of {', '.join(row.aim_against)})"
    return [row.name, figure(OURS), peers, ratio, f"{row.must:.2f}", f"{row.aim:.2f}", judged["verdict"]]


HEADINGS = ["work", "Likeness", "peers", "ratio", "must", "aim", "verdict"]


PACKAGES = ["torch", "torchvision", "onnxruntime", "numpy", "pillow", "opencv-python-headless"]


def record(lines: list[dict], works: dict, judged: dict, rounds: int, threads: int) -> dict:
    about = provenance("kernels", PACKAGES)
    return {**about, "threads": threads, "rounds": rounds, "results": judged, "works": works, "lines": lines}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", action="append", metavar="WORK", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="within a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    settings = Settings(args.images, args.models, args.threads, args.repetitions)
    every = list(dict.fromkeys(row.work for row in ROWS))
    if unknown := set(args.work or []) - set(every):
        raise SystemExit(f"bench: no work `{', '.join(unknown)}`; there are {', '.join(every)}")
    chosen = [work for work in every if not args.work or work in args.work]
    lines = measure(chosen, settings, args.rounds)
    works = summary(lines)
    judged = {row.name: result for row in ROWS if (result := verdict(row, works.get(row.work, {})))}
    args.out.write_text(json.dumps(record(lines, works, judged, args.rounds, args.threads), indent=1) + "\n")
    print(table(HEADINGS, [cells(row, works[row.work], judged[row.name]) for row in ROWS if row.name in judged]))
    print(f"\nratio: how many times the best of the peers takes what we take; milliseconds are median/best; {args.out}")
    end([name for name, result in judged.items() if result["verdict"] == "missed"])


if __name__ == "__main__":
    main()
