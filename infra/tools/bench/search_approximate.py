"""Approximate Euclidean top-10 with the libraries that others use, over the vectors that our own bench program writes.

python3 search_approximate.py ENGINE FOLDER [--repetitions N]

FOLDER holds base.npy and query.npy, as for search_exact.py. Builds the engine's index, then goes through its efforts; prints one
line of JSON for the build, and one for every effort with the recall@10 that it reached. One thread; the build has all.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

K = 10
QUERIES = 256
EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
PROBES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Search = Callable[[np.ndarray], np.ndarray]


class Faiss:
    """One of FAISS's indexes, by its factory's name; queries are asked one by one, as they come to a service."""

    def __init__(self, base: np.ndarray, factory: str) -> None:
        import faiss

        self.faiss = faiss
        self.index = faiss.index_factory(base.shape[1], factory.format(lists=int(8 * len(base) ** 0.5)))
        self.index.train(base)
        self.index.add(base)

    def efforts(self) -> Iterator[tuple[str, Search]]:
        self.faiss.omp_set_num_threads(1)
        graph = isinstance(self.index, self.faiss.IndexHNSW)
        space = self.faiss.ParameterSpace()
        for effort in EFFORTS if graph else PROBES:
            for refine in (1,) if graph else (2, 4, 10):
                if graph:
                    space.set_index_parameter(self.index, "efSearch", effort)
                else:
                    self.index.k_factor = refine
                    ivf = self.faiss.extract_index_ivf(self.index)
                    ivf.nprobe = effort
                yield f"{effort} × {refine}", lambda query: self.index.search(query[None], K)[1][0]


class Scann:
    """A tree, its asymmetric hashing and exact rescoring, as its documentation recommends."""

    def __init__(self, base: np.ndarray) -> None:
        import scann

        leaves = int(2 * len(base) ** 0.5)
        builder = scann.scann_ops_pybind.builder(base, K, "dot_product")
        builder = builder.tree(num_leaves=leaves, num_leaves_to_search=leaves // 20, training_sample_size=min(len(base), 250_000))
        self.index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
        self.leaves = leaves

    def efforts(self) -> Iterator[tuple[str, Search]]:
        self.index.set_num_threads(1)
        for leaves in PROBES:
            for rescored in (30, 60, 120, 250):
                options = {"leaves_to_search": leaves, "pre_reorder_num_neighbors": rescored, "final_num_neighbors": K}
                yield f"{leaves} × {rescored}", lambda query, options=options: self.index.search(query, **options)[0]


class Hnswlib:
    def __init__(self, base: np.ndarray) -> None:
        import hnswlib

        self.index = hnswlib.Index(space="l2", dim=base.shape[1])
        self.index.init_index(max_elements=len(base), ef_construction=200, M=16)
        self.index.add_items(base)

    def efforts(self) -> Iterator[tuple[str, Search]]:
        self.index.set_num_threads(1)
        for effort in EFFORTS:
            self.index.set_ef(effort)
            yield str(effort), lambda query: self.index.knn_query(query[None], k=K)[0][0]


ENGINES = {
    "FAISS HNSW": lambda base: Faiss(base, "HNSW16"),
    "FAISS IVF-PQ": lambda base: Faiss(base, f"IVF{{lists}},PQ{base.shape[1] // 2}x4fs,Refine(Flat)"),
    "FAISS IVF-RaBitQ": lambda base: Faiss(base, "IVF{lists},RaBitQ,Refine(Flat)"),
    "ScaNN": Scann,
    "hnswlib": Hnswlib,
}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def exact(base: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The rows of largest product, which for unit rows are the nearest."""
    found = [np.argpartition(-(query @ base.T), K)[:K] for query in queries]
    return np.array(found)


def measure(name: str, work: str, effort: str, search: Search, queries: np.ndarray, truth: np.ndarray, repetitions: int) -> None:
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        found = [search(query) for query in queries]
        times.append(1e3 * (time.perf_counter() - started) / len(queries))
    hits = sum(len(set(ours) & set(theirs)) for ours, theirs in zip(truth.tolist(), map(list, found)))
    median = statistics.median(times)
    line = {
        "engine": name,
        "work": work,
        "effort": effort,
        "recall": round(hits / truth.size, 4),
        "median_ms": round(median, 4),
        "best_ms": round(min(times), 4),
        "qps": round(1e3 / median),
        "threads": 1,
        "repetitions": repetitions,
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    base, queries = np.load(args.folder / "base.npy"), np.load(args.folder / "query.npy")[:QUERIES]
    shape = f"{args.folder.name}-{base.shape[0]}x{base.shape[1]}"
    before, started = resident(), time.perf_counter()
    engine = ENGINES[args.engine](base)
    took, bytes_per_vector = 1e3 * (time.perf_counter() - started), (resident() - before) / len(base)
    line = {
        "engine": args.engine,
        "work": f"approximate-build-{shape}",
        "median_ms": round(took, 1),
        "best_ms": round(took, 1),
        "bytes_per_vector": round(bytes_per_vector, 1),
        "threads": os.cpu_count(),
        "repetitions": 1,
    }
    print(json.dumps(line), flush=True)
    truth = exact(base, queries)
    for effort, search in engine.efforts():
        measure(args.engine, f"approximate-{shape}", effort, search, queries, truth, args.repetitions)


if __name__ == "__main__":
    main()
