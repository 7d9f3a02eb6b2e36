"""Times a piece of work and prints it as one line of JSON, the same line that our own bench programs print."""

import json
import resource
import statistics
import time
from collections.abc import Callable

WARM_UP = 2


def measure(engine: str, work: str, repetitions: int, run: Callable[[], object], items: int | None = None) -> None:
    """Runs `run` until it is warm, then `repetitions` times; `items` are what one run handles (images)."""
    for _ in range(WARM_UP):
        run()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    line = {
        "engine": engine,
        "work": work,
        "median_ms": round(statistics.median(times), 4),
        "best_ms": round(min(times), 4),
        # Linux counts in KiB.
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "repetitions": repetitions,
    }
    if items is not None:
        line["items"] = items
    print(json.dumps(line), flush=True)
