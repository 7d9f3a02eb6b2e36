"""Exact top-10 in databases that run inside a process: what loading and one query take, and the memory.

python3 search_embedded.py ENGINE FOLDER [--repetitions N]

FOLDER holds base.npy and query.npy, as for search_exact.py. The first 100,000 rows only: these engines take long to fill.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS, K = 100_000, 10


def lancedb_search(base: np.ndarray, folder: str):
    import lancedb
    import pyarrow

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(base.reshape(-1)), base.shape[1])
    rows = pyarrow.table({"id": np.arange(len(base)), "vector": values})
    rows = lancedb.connect(folder).create_table("rows", rows)
    return lambda query: [row["id"] for row in rows.search(query).select(["id"]).limit(K).to_list()]


def qdrant_search(base: np.ndarray, _: str):
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection("rows", vectors_config=models.VectorParams(size=base.shape[1], distance=models.Distance.EUCLID))
    client.upload_collection("rows", vectors=base, ids=range(len(base)))
    return lambda query: [point.id for point in client.query_points("rows", query=query, limit=K).points]


ENGINES = {"LanceDB": lancedb_search, "Qdrant local": qdrant_search}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    base, queries = np.load(args.folder / "base.npy", mmap_mode="r")[:ROWS], np.load(args.folder / "query.npy")[:64]
    base = np.ascontiguousarray(base)
    shape = f"{args.folder.name}-{base.shape[0]}x{base.shape[1]}"
    with tempfile.TemporaryDirectory() as folder:
        before, started = resident(), time.perf_counter()
        search = ENGINES[args.engine](base, folder)
        loaded, memory = 1e3 * (time.perf_counter() - started), (resident() - before) / len(base)
        nearest = np.linalg.norm(base - queries[0], axis=1).argmin()
        assert search(queries[0])[0] == nearest, "not the nearest neighbour"
        times = []
        for repetition in range(max(args.repetitions, 10)):
            started = time.perf_counter()
            search(queries[repetition % len(queries)])
            times.append(1e3 * (time.perf_counter() - started))
    common = {"engine": args.engine, "threads": os.cpu_count()}
    load = {"work": f"embedded-load-{shape}", "median_ms": round(loaded, 1), "bytes_per_vector": round(memory, 1)}
    one = {"work": f"embedded-exact-{shape}-k{K}", "median_ms": round(statistics.median(times), 3), "bytes_per_vector": round(memory, 1)}
    for line in (load, one):
        print(json.dumps({**common, **line}), flush=True)


if __name__ == "__main__":
    main()
