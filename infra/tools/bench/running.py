"""What the comparisons share: building our bench programs, running engines one after the other, the table and the record."""

import functools
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from machine import commit, processor

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
OURS = "Likeness"
# For the Python engines: keep freed memory instead of giving it back and faulting it in again, as mimalloc does for ours.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
# Bench programs of ours and their packages.
PROGRAMS = {
    "decode": "likeness-data",
    "embed": "likeness-worker",
    "evaluation": "likeness-evaluation",
    "ingest": "likeness-worker",
    "incremental": "likeness-worker",
    "network": "likeness-model",
    "protocol": "likeness-tests",
    "search": "likeness-index",
}


@functools.cache
def program(name: str) -> str:
    """The path of a bench program, built now."""
    print(f"bench: building `{name}` (the first time takes some minutes)", file=sys.stderr)
    profile = os.environ.get("LIKENESS_BENCH_PROFILE", "bench")
    command = ["cargo", "bench", "--quiet", "--manifest-path", str(ROOT / "Cargo.toml"), "--profile", profile]
    command += ["--package", PROGRAMS[name], "--bench", name, "--no-run", "--message-format", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: `{name}` could not be built")
    for message in map(json.loads, done.stdout.splitlines()):
        target = message.get("target", {})
        if message["reason"] == "compiler-artifact" and target["kind"] == ["bench"] and target["name"] == name:
            return message["executable"]
    raise SystemExit(f"bench: cargo built no `{name}`")


def lines_of(command: list[str]) -> Iterator[dict]:
    """The lines of JSON that a command prints."""
    peer = command[0] == sys.executable
    done = subprocess.run(command, env=os.environ | (ALLOCATOR if peer else {}), stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: `{' '.join(command)}` ended with status {done.returncode}")
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def table(headings: list[str], rows: Iterable[list[str]]) -> str:
    lines = [headings, ["-" * len(heading) for heading in headings], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# What `infra/bench` adds behind the user's own words.
HIDDEN = {"--images", "--folder", "--models", "--vectors", "--out"}


def provenance(comparison: str, packages: list[str]) -> dict:
    """Where and how a run was made."""
    words = itertools.takewhile(lambda word: word not in HIDDEN, sys.argv[1:])
    return {
        "command": " ".join([f"infra/bench {comparison}", *words]),
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor(),
        "allocator": {"peers": ALLOCATOR, "ours": "mimalloc"},
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def end(missed: list[str]) -> None:
    """Exit status 1 when a must is missed."""
    if missed:
        print(f"a must is missed: {'; '.join(missed)}")
        raise SystemExit(1)
