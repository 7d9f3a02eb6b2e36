"""Runs the bench of the job protocol and prints the tables of `infra/bench protocol`.

Musts: a worker that stops at once costs at most `ack_wait` and one task, a killed leader at most its lease and what a new leader needs to read;
nothing is computed twice but what was at hand; the coordinator's time for a task does not grow with the number of tasks. Exit status
1 when one is missed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from running import ROOT, end, lines_of, program, provenance, table

# A job ends when somebody looks, and processes take turns on few cores.
SLACK_S = 1.0
# A new leader connects, reads the open jobs and all their events.
TAKEOVER_S = 1.0


def deaths(lines: list[dict]) -> tuple[list[list[str]], list[str]]:
    found = {line["of"]: line for line in lines if line["work"] == "death"}
    calm, rows, missed = found["nothing"], [], []
    task = calm["task_ms"] / 1e3
    most = {"nothing": 0.0, "worker": calm["ack_wait_ms"] / 1e3 + task, "leader": calm["lease_ms"] / 1e3 + TAKEOVER_S}
    # Reconnecting, then two times without news until tasks are looked after.
    most["broker's data"] = 3 * calm["ack_wait_ms"] / 1e3 + task
    for of, line in found.items():
        cost, again = line["seconds"] - calm["seconds"], line["computed"] - line["tasks"]
        rows.append([of, f"{line['seconds']:.2f}", f"{cost:.2f}", f"{most[of]:.2f}", str(again)])
        if cost > most[of] + SLACK_S:
            missed.append(f"the death of {of} costs {cost:.2f} s")
        if again > 2:
            missed.append(f"{again} tasks were computed twice after the death of {of}")
    return rows, missed


def main() -> None:
    parser = argparse.ArgumentParser(prog="infra/bench protocol", description=__doc__)
    parser.add_argument("--tasks", default="1000,10000,99000", help="sizes of the jobs")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    ours = program("protocol")
    profile = "dev" if os.environ.get("LIKENESS_BENCH_PROFILE") == "dev" else "release"
    build = ["cargo", "build", "--quiet", "--manifest-path", str(ROOT / "Cargo.toml"), "--profile", profile]
    subprocess.run([*build, "--package", "likeness"], check=True)
    lines = []
    for line in lines_of([ours, "--tasks", args.tasks, "--workers", str(args.workers)]):
        lines.append(line)
        print(f"  {json.dumps(line)}", file=sys.stderr)
    sizes = [line for line in lines if line["work"] == "throughput"]
    rows = [[f"{line[key]:.6g}" for key in ("tasks", "workers", "tasks_per_s", "coordinator_us_per_task")] for line in sizes]
    print(table(["tasks", "workers", "tasks/s", "coordinator µs a task"], rows))
    dead, missed = deaths(lines)
    print("\n" + table(["what dies", "job s", "cost s", "at most s", "computed again"], dead))
    first, last = sizes[0], sizes[-1]
    if last["coordinator_us_per_task"] > 1.5 * first["coordinator_us_per_task"]:
        missed.append("the coordinator's time for a task grows with their number")
    args.out.write_text(json.dumps({**provenance("protocol", []), "lines": lines}, indent=1) + "\n")
    end(missed)


if __name__ == "__main__":
    main()
