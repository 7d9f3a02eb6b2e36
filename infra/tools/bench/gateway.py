"""What the HTTP gateway adds to a search: `infra/bench gateway`.

A system on this machine serves drawn embeddings. The same question is asked at the same rate in turn: of the search service over NATS
(`likeness bench search`) and of the gateway (`oha`, over connections that stay open). What the gateway adds is the difference of the
medians, counted in both from when a request was due; the middle of the rounds is told. Must: below 1 ms. Exit status 1 when it is missed.
"""

import argparse
import json
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from running import end, provenance, table

MUST_MS = 1.0
QUESTION = {"alias": "main", "terms": [{"weight": 1.0, "term": {"item": {"item": "row-7"}}}], "k": 20, "min_coverage": 1.0}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def embeddings(folder: Path, rows: int, dim: int) -> None:
    """Unit vectors by a small generator of numbers, as a `.npy` array and its table of ids."""
    state = 1
    with (folder / "drawn.npy").open("wb") as out:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
        header += " " * (-(len(header) + 11) % 64) + "\n"
        out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        for _ in range(rows):
            row = []
            for _ in range(dim):
                state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
                row.append((state >> 40) / 2**23 - 1.0)
            out.write(struct.pack(f"<{dim}f", *row))
    (folder / "drawn.csv").write_text("id\n" + "".join(f"row-{row}\n" for row in range(rows)))


class System:
    """`likeness up` in a folder of its own."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.likeness, self.folder, self.http = binaries / "likeness", folder, f"127.0.0.1:{free_port()}"
        self.log = (folder / "up.log").open("w")
        command = [self.likeness, "up", folder / "up", "--http", self.http, "--searchers", "2", "--workers", "1"]
        self.up = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def __enter__(self) -> "System":
        while subprocess.run([self.likeness, "status", "--up", self.folder / "up"], capture_output=True).returncode != 0:
            if self.up.poll() is not None:
                raise SystemExit(f"bench: `likeness up` ended: {(self.folder / 'up.log').read_text()}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.up.terminate()
        self.up.wait()

    def run(self, *words: str) -> str:
        command = [str(self.likeness), *words, "--up", str(self.folder / "up")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=self.folder)
        if done.returncode != 0:
            raise SystemExit(f"bench: `{' '.join(command)}` ended with status {done.returncode}")
        return done.stdout

    def serve(self, rows: int, dim: int) -> None:
        embeddings(self.folder, rows, dim)
        self.run("embed", "import", "drawn.npy", "--table", "drawn.csv", "--gallery", "drawn", "--normalize", "--id", "drawn")
        self.run("releases", "promote", "drawn/drawn")
        (self.folder / "question.jsonl").write_text(json.dumps(QUESTION["terms"]) + "\n")
        (self.folder / "question.json").write_text(json.dumps(QUESTION))

    def over_nats(self, rate: float, seconds: float) -> dict:
        """Milliseconds."""
        words = ["--rate", str(rate), "--duration", str(seconds), "--queries", "question.jsonl", "--json"]
        found = json.loads(self.run("bench", "search", "-k", str(QUESTION["k"]), *words))
        if found["errors"] or found["least_coverage"] < 1.0:
            raise SystemExit(f"bench: the search service failed: {found['errors']}")
        return {f"{key}_ms": found["latency"][key] for key in ("p50", "p99")}

    def over_http(self, oha: str, rate: float, seconds: float) -> dict:
        """Milliseconds."""
        command = [oha, "--no-tui", "--output-format", "json", "-m", "POST", "-T", "application/json"]
        command += ["-D", str(self.folder / "question.json"), "-q", str(rate), "-z", f"{seconds}s", "-c", "16"]
        command += ["--latency-correction", f"http://{self.http}/v1/search"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        codes = found["statusCodeDistribution"]
        if set(codes) != {"200"}:
            raise SystemExit(f"bench: the gateway answered {codes}")
        return {f"{key}_ms": 1e3 * found["latencyPercentiles"][key] for key in ("p50", "p99")}

    def answers(self) -> None:
        """Both ways give the same hits."""
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://{self.http}/v1/search", json.dumps(QUESTION).encode(), headers)
        with urllib.request.urlopen(request) as reply:
            http = [hit["item"] for hit in json.load(reply)["hits"]]
        nats = json.loads(self.run("search", "--like", "row-7", "-k", str(QUESTION["k"]), "--json"))
        if http != [hit["item"] for hit in nats["hits"]] or len(http) != QUESTION["k"]:
            raise SystemExit("bench: the gateway and the search service answer otherwise")


def main() -> None:
    parser = argparse.ArgumentParser(prog="infra/bench gateway", description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--binaries", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--oha", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder, System(args.binaries, Path(folder)) as system:
        system.serve(args.rows, args.dim)
        system.answers()
        for number in range(args.rounds):
            rounds.append({
                "nats": system.over_nats(args.rate, args.seconds),
                "http": system.over_http(args.oha, args.rate, args.seconds),
            })
            print(f"  {json.dumps(rounds[number])}", file=sys.stderr)
    added = statistics.median(one["http"]["p50_ms"] - one["nats"]["p50_ms"] for one in rounds)
    middle = {way: {key: statistics.median(one[way][key] for one in rounds) for key in rounds[0][way]} for way in rounds[0]}
    rows = [[name, *(f"{ms:.2f}" for ms in middle[way].values())] for way, name in (("nats", "NATS"), ("http", "gateway"))]
    print(table(["search over", "p50 ms", "p99 ms"], rows))
    print(f"\nthe gateway adds {added:.2f} ms at p50 (must: below {MUST_MS:.0f}), {args.rate:g} requests a second")
    record = provenance("gateway", []) | {"rounds": rounds, "added_p50_ms": added}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    end([f"the gateway adds {added:.2f} ms"] if added >= MUST_MS else [])


if __name__ == "__main__":
    main()
