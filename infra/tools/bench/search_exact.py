"""Exact Euclidean top-K with the libraries that others use, over the vectors that our own bench program writes.

python3 search_exact.py ENGINE FOLDER [--threads 1,2] [--only PART] [--repetitions N]

FOLDER holds base.npy and query.npy: `cargo bench -p likeness-index --bench search -- clustered --write FOLDER` makes them for the
clustered set, search_words.py for word vectors. Every batch has other queries; prints one line of JSON for every work.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

# Queries at once and K, as in the bench program.
WORKS = [(1, 10), (1, 100), (16, 10), (16, 100), (256, 10), (256, 100)]


class Faiss:
    """IndexFlatL2. By default it multiplies matrices only for very large batches; `batched` makes it do so from 8 queries on."""

    def __init__(self, base: np.ndarray, batched: bool) -> None:
        import faiss

        self.faiss = faiss
        if batched:
            faiss.cvar.distance_compute_blas_threshold = 8
        self.index = faiss.IndexFlatL2(base.shape[1])
        self.index.add(base)

    def set_threads(self, threads: int) -> bool:
        self.faiss.omp_set_num_threads(threads)
        return True

    def __call__(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.search(queries, k)[1]


class Scann:
    """Brute force; batches go through its own batched search, in parallel when there is more than one thread."""

    def __init__(self, base: np.ndarray) -> None:
        import scann

        self.index = scann.scann_ops_pybind.builder(base, 10, "squared_l2").score_brute_force().build()
        self.threads = 1

    def set_threads(self, threads: int) -> bool:
        self.threads = threads
        self.index.set_num_threads(threads)
        return True

    def __call__(self, queries: np.ndarray, k: int) -> np.ndarray:
        if len(queries) == 1:
            return self.index.search(queries[0], final_num_neighbors=k)[0][None]
        search = self.index.search_batched if self.threads == 1 else self.index.search_batched_parallel
        return search(queries, final_num_neighbors=k)[0]


class NumPy:
    """A matrix product and a partial sort; unit rows are ordered by their product."""

    def __init__(self, base: np.ndarray) -> None:
        self.base = base

    def set_threads(self, threads: int) -> bool:
        # BLAS reads its number of threads when it is loaded.
        return os.environ.get("OPENBLAS_NUM_THREADS", str(os.cpu_count())) == str(threads)

    def __call__(self, queries: np.ndarray, k: int) -> np.ndarray:
        scores = queries @ self.base.T
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)


ENGINES = {
    "FAISS": lambda base: Faiss(base, batched=False),
    "FAISS batched": lambda base: Faiss(base, batched=True),
    "ScaNN": Scann,
    "NumPy": NumPy,
}


def check(engine, base: np.ndarray, queries: np.ndarray) -> None:
    """What an engine finds is as near as what NumPy finds: a peer that is set up wrongly would be an easy one."""
    expected = NumPy(base)(queries[:4], 10)
    found = engine(queries[:4], 10)
    for query, ours, theirs in zip(queries, expected, found):
        distances = [np.sort(np.linalg.norm(base[rows] - query, axis=1)) for rows in (ours, theirs)]
        assert np.allclose(*distances, atol=1e-4), "not the nearest neighbours"


def measure(name: str, engine, work: str, queries: np.ndarray, batch: int, k: int, threads: int, repetitions: int) -> None:
    batches = [queries[at : at + batch] for at in range(0, len(queries) - batch + 1, batch)]
    engine(batches[0], k)
    times = []
    for repetition in range(max(repetitions, 20) if batch == 1 else repetitions):
        started = time.perf_counter()
        engine(batches[repetition % len(batches)], k)
        times.append(1e3 * (time.perf_counter() - started))
    median = statistics.median(times)
    line = {
        "engine": name,
        "work": work,
        "queries": batch,
        "median_ms": round(median, 3),
        "best_ms": round(min(times), 3),
        "qps": round(1e3 * batch / median, 1),
        "threads": threads,
        "repetitions": len(times),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", default="")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    base, queries = np.load(args.folder / "base.npy"), np.load(args.folder / "query.npy")[:256]
    engine = ENGINES[args.engine](base)
    check(engine, base, queries)
    for threads in map(int, args.threads.split(",")):
        if not engine.set_threads(threads):
            continue
        for batch, k in WORKS:
            work = f"exact-{args.folder.name}-{base.shape[0]}x{base.shape[1]}-b{batch}-k{k}"
            if batch <= len(queries) and args.only in work:
                measure(args.engine, engine, work, queries, batch, k, threads, args.repetitions)


if __name__ == "__main__":
    main()
