"""Runs our search bench and the peers in turn and prints the table of `infra/bench search`.

Every engine runs in a process of its own, one after the other, for several rounds; what counts is the median over the rounds. Approximate
engines are compared by the best they do at no lower recall than asked. Exit status 1 when a must is missed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from running import HERE, OURS, end, lines_of, program, provenance, table

PARTS = ("exact", "approximate", "load", "embedded")
EXACT = ("FAISS", "FAISS batched", "ScaNN")
APPROXIMATE = ("FAISS HNSW", "FAISS IVF-PQ", "FAISS IVF-RaBitQ", "ScaNN", "hnswlib")
EMBEDDED = ("LanceDB", "Qdrant local")
# Recalls at 10 that are compared.
LEVELS = (0.95, 0.98, 0.99)
PEERS = tuple(dict.fromkeys((*EXACT, *APPROXIMATE, *EMBEDDED)))
PACKAGES = ["faiss-cpu", "scann", "hnswlib", "lancedb", "qdrant-client", "numpy"]


@dataclass(frozen=True)
class Row:
    """One line of the table: figures of ours and of a peer, and how many times the peer has to take what we take."""

    name: str
    ours: str
    theirs: str
    peers: tuple[str, ...]
    must: float
    aim: float
    threads: int = 1
    recall: float | None = None


def rows(shape: str, threads: int) -> Iterator[Row]:
    for count in range(1, threads + 1):
        said = f"{shape}, {count} thread{'s'[: count - 1]}"
        for k in (10, 100):
            one, many = f"exact-{shape}-b1-k{k}", f"exact-{shape}-b256-k{k}"
            yield Row(f"1 query, K = {k}, {said}", one, one, ("FAISS",), 6, 10, count)
            yield Row(f"1 query, K = {k}, {said}", one, one, ("ScaNN",), 4, 6, count)
            yield Row(f"256 queries, K = {k}, {said}", many, many, ("FAISS batched",), 1.7, 2.5, count)
            if count == 1:
                yield Row(f"256 queries, K = {k}, {said}", many, many, ("ScaNN",), 2, 2.5, count)
    for level in LEVELS:
        work = f"approximate-{shape}"
        yield Row(f"approximate, recall@10 ≥ {level}, {shape}", work, work, APPROXIMATE, 1, 1.5, recall=level)
    build = f"approximate-build-{shape}"
    yield Row(f"build of the approximate index, {shape}", build, build, ("FAISS HNSW",), 3, 10, threads)
    read = ("read of the bytes",)
    yield Row(f"load, {shape}", f"load-{shape}", f"read-bytes-{shape}", read, 1 / 1.5, 1 / 1.2, threads)


@dataclass(frozen=True)
class Settings:
    data: str
    folder: Path
    parts: list[str]
    threads: int
    repetitions: int
    peers: tuple[str, ...] = PEERS


def asked(engines: tuple[str, ...], settings: Settings) -> list[str]:
    return [engine for engine in engines if engine in settings.peers]


def commands(settings: Settings) -> Iterator[list[str]]:
    """What is run, ours first; each command prints lines of JSON."""
    python, folder = sys.executable, str(settings.folder)
    counts = ",".join(str(count) for count in range(1, settings.threads + 1))
    counted = ["--repetitions", str(settings.repetitions)]
    for part in settings.parts:
        if part != "embedded":
            yield [program("search"), folder, "--threads", counts, "--only", part, *counted]
        if part == "exact":
            for engine in asked(EXACT, settings):
                script = str(HERE / "search_exact.py")
                yield [python, script, engine, folder, "--threads", counts, "--only", part, *counted]
        if part == "approximate":
            for engine in asked(APPROXIMATE, settings):
                yield [python, str(HERE / "search_approximate.py"), engine, folder, *counted]
        if part == "embedded":
            for engine in asked(EMBEDDED, settings):
                yield [python, str(HERE / "search_embedded.py"), engine, folder, *counted]


def vectors(data: str, folder: Path) -> None:
    """Makes base.npy and query.npy, once."""
    if (folder / "query.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if data == "words":
        subprocess.run([sys.executable, str(HERE / "search_words.py"), str(folder)], check=True)
    else:
        subprocess.run([program("search"), data, "--only", "nothing", "--write", str(folder)], check=True)


def measure(settings: Settings, rounds: int) -> list[dict]:
    """Every line of every round."""
    lines = []
    for number in range(rounds):
        for command in commands(settings):
            for line in lines_of(command):
                lines.append({**line, "round": number})
                recall = f" recall {line['recall']:.3f}" if "recall" in line else ""
                print(f"  {line['work']:36} {line['engine']:18} {line['median_ms']:10.3f} ms{recall}", file=sys.stderr)
    return lines


def figure(lines: list[dict], engine: str, work: str, threads: int, recall: float | None) -> float | None:
    """Milliseconds: the median of the rounds' medians; at a recall, of the quickest effort that reaches it."""
    rounds = defaultdict(list)
    for line in lines:
        if (line["engine"], line["work"], line.get("threads", threads)) != (engine, work, threads):
            continue
        if recall is None or line["recall"] >= recall:
            rounds[line.get("effort", line.get("target"))].append(line["median_ms"])
    return min((statistics.median(times) for times in rounds.values()), default=None)


def judge(row: Row, lines: list[dict]) -> dict | None:
    ours = figure(lines, OURS, row.ours, row.threads, row.recall)
    names = {peer: OURS if peer == "read of the bytes" else peer for peer in row.peers}
    theirs = {peer: figure(lines, name, row.theirs, row.threads, row.recall) for peer, name in names.items()}
    theirs = {peer: took for peer, took in theirs.items() if took is not None}
    if ours is None or not theirs:
        return None
    best = min(theirs, key=theirs.get)
    ratio = theirs[best] / ours
    reached = "missed" if ratio < row.must else "aim" if ratio >= row.aim else "must"
    return {"ours_ms": ours, "peer": best, "peer_ms": theirs[best], "ratio": ratio, "verdict": reached}


def cells(row: Row, judged: dict) -> list[str]:
    took = [f"{judged['ours_ms']:.3f}", f"{judged['peer']} {judged['peer_ms']:.3f}"]
    return [row.name, *took, f"{judged['ratio']:.2f}", f"{row.must:.2f}", f"{row.aim:.2f}", judged["verdict"]]


def side(lines: list[dict]) -> list[list[str]]:
    """Memory and load of everything that tells them."""
    told = [line for line in lines if "bytes_per_vector" in line]
    return [[line["engine"], line["work"], f"{line['median_ms']:.0f}", f"{line['bytes_per_vector']:.0f}"] for line in told]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--data", action="append", choices=["clustered", "clustered-300k", "words"], help="may be repeated")
    known = f"only beside this one: {', '.join(PEERS)}; may be repeated"
    parser.add_argument("--peer", action="append", choices=PEERS, metavar="NAME", help=known)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=5, help="within a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vectors", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    parts = [part for part in PARTS if not args.work or part in args.work]
    lines, judged, printed = [], {}, []
    for data in args.data or ["clustered", "words"]:
        folder = args.vectors / data
        vectors(data, folder)
        settings = Settings(data, folder, parts, args.threads, args.repetitions, tuple(args.peer or PEERS))
        found = measure(settings, args.rounds)
        lines += found
        # The name of the set with its size, as the programs tell it.
        shapes = {line["work"].removeprefix("exact-").removesuffix("-b1-k10") for line in found if line["work"].endswith("-b1-k10")}
        shapes |= {line["work"].split("-", 1)[1] for line in found if line["work"].startswith(("approximate-", "load-"))}
        for shape in sorted(shape for shape in shapes if shape.startswith(f"{data}-")):
            for row in rows(shape, args.threads):
                if result := judge(row, found):
                    judged[f"{row.name}, {'/'.join(row.peers)}"] = result
                    printed.append(cells(row, result))
    about = provenance("search", PACKAGES)
    args.out.write_text(json.dumps({**about, "rounds": args.rounds, "results": judged, "lines": lines}, indent=1) + "\n")
    headings = ["work", "Likeness ms", "best peer ms", "ratio", "must", "aim", "verdict"]
    print(table(headings, printed))
    print("\n" + table(["engine", "work", "ms", "bytes a vector"], side(lines)))
    print(f"\nratio: how many times the best of the peers takes what we take; {args.out}")
    end([name for name, result in judged.items() if result["verdict"] == "missed"])


if __name__ == "__main__":
    main()
