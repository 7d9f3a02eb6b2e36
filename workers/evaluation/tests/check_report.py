#!/usr/bin/env python3
"""Recomputes a report from the gallery's Parquet shards by other libraries, and compares.

    python3 check_report.py STORE REPORT      (STORE: folder of the store; REPORT: id of the job)

Needs numpy, pyarrow and scikit-learn; pytrec_eval (`pytrec-eval-terrier`) and torchmetrics are used when they are there.
Nothing of Likeness is used: labels, embeddings and scores are read with pyarrow, the attribute tower is run in numpy from the
safetensors file, AP and nDCG are scikit-learn's. pytrec_eval reads the report's TREC files, torchmetrics the same rankings.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score, ndcg_score


def document(store, key):
    return json.loads((store / key).read_text())["body"]


def safetensors(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], dtype="<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if entry["dtype"] == "F32"
    }


def attribute_tower(t, vectors):
    t = {name.removeprefix("attributes."): value.astype(np.float64) for name, value in t.items() if name.startswith("attributes.")}
    x = vectors @ t["linear1.weight"].T + t["linear1.bias"]
    x = (x - t["bn1.running_mean"]) / np.sqrt(t["bn1.running_var"] + 1e-5) * t["bn1.weight"] + t["bn1.bias"]
    x = np.maximum(x, 0) @ t["linear2.weight"].T + t["linear2.bias"]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def gallery(store, manifest, rows):
    wanted = {"train": [0], "validation": [1], "test": [2], "all": [0, 1, 2]}[rows]
    ids, embeddings, labels = [], [], []
    for shard in manifest["shards"]:
        table = pq.read_table(store / shard["object"]["key"])
        keep = np.isin(table["split"].to_numpy(), wanted)
        column = lambda name: np.array(table[name].combine_chunks().flatten()).reshape(table.num_rows, -1)[keep]
        ids += [item for item, kept in zip(table["item_id"].to_pylist(), keep) if kept]
        embeddings.append(column("embedding"))
        labels.append(column("attributes"))
    return np.array(ids, dtype=object), np.concatenate(embeddings), np.concatenate(labels)


def ranking(query, vector, ids, embeddings, labels):
    """Of every judged item, nearest first: terms that it fulfils, and its place in the gallery."""
    asked = [term["attribute"] for term in query["terms"]]
    signs = np.array([1 if term["positive"] else -1 for term in query["terms"]])
    judged = (labels[:, asked] != 0).all(axis=1)
    if query["image"] and not query["image"].get("stays"):
        judged &= ids != query["image"]["item"]
    places = np.flatnonzero(judged)
    d2 = ((embeddings[places].astype(np.float64) - vector.astype(np.float64)) ** 2).sum(axis=1)
    by_id = np.argsort([item.encode() for item in ids[places]])
    places = places[by_id[np.argsort(d2[by_id], kind="stable")]]
    return (labels[places][:, asked] == signs).sum(axis=1), places


def cs_precision(query, fulfilled, places, labels):
    if not query["image"]:
        return np.nan
    image = labels[query["image"]["index"]] == 1
    first = places[:10][fulfilled[:10] == len(query["terms"])]
    has = labels[first] == 1
    norm = np.sqrt(image.sum() * has.sum(axis=1))
    return np.divide((has & image).sum(axis=1), norm, out=np.zeros(len(first)), where=norm > 0).sum() / 10


NAMES = ["average_precision", "chance", "p_at_1", "p_at_5", "p_at_10", "p_at_100"]
NAMES += ["r_precision", "article_ap", "ndcg_at_10", "ndcg_at_100", "cs_p_at_10"]


def score(query, fulfilled, places, labels):
    ranked, rank = fulfilled == len(query["terms"]), np.arange(1, len(places) + 1)
    ap = average_precision_score(ranked, -rank)
    precision = np.cumsum(ranked) / rank
    relevant = ranked.sum()
    ndcg = [ndcg_score([fulfilled], [-rank], k=k) if fulfilled.any() and len(rank) > 1 else 0.0 for k in (10, 100)]
    figures = [ap, ranked.mean()] + [ranked[:k].sum() / k for k in (1, 5, 10, 100)]
    return figures + [precision[relevant - 1], precision[:relevant].mean(), *ndcg, cs_precision(query, fulfilled, places, labels)]


def image_vector(query, gallery, attributes):
    """Normalised image ± attributes, each embedded alone."""
    vector = gallery[query["image"]["index"]].astype(np.float64)
    for term in query["terms"]:
        vector += (1 if term["positive"] else -1) * attributes[term["attribute"]].astype(np.float64)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def largest(name, ours, theirs):
    print(f"{name:34} largest difference {np.nanmax(np.abs(np.array(ours, dtype=np.float64) - np.array(theirs))):.3g}")


def check_trec(store, report, ours):
    """The TREC files as trec_eval reads them, against the per-query table."""
    import pytrec_eval

    read = lambda name: (store / report["trec"][name]["key"]).read_text().splitlines()
    run, qrels, graded = {}, {}, {}
    for line in read("run"):
        query, _, item, _, value, _ = line.split(" ")
        run.setdefault(query, {})[item] = float(value)
    for lines, table in ((read("qrels"), qrels), (read("graded_qrels"), graded)):
        for line in lines:
            query, _, item, level = line.split(" ")
            table.setdefault(query, {})[item] = int(level)
    binary = pytrec_eval.RelevanceEvaluator(qrels, {"map", "P.1,5,10,100", "Rprec"}).evaluate(run)
    levels = pytrec_eval.RelevanceEvaluator(graded, {"ndcg_cut.10,100"}).evaluate(run)
    queries = [int(name[1:]) for name in binary]
    columns = {"average_precision": "map", "r_precision": "Rprec"} | {f"p_at_{k}": f"P_{k}" for k in (1, 5, 10, 100)}
    for ours_name, theirs in columns.items():
        largest(f"{ours_name} by pytrec_eval", [ours[ours_name][q] for q in queries], [binary[f"q{q}"][theirs] for q in queries])
    for k in (10, 100):
        theirs = [levels[f"q{q}"][f"ndcg_cut_{k}"] for q in queries]
        largest(f"ndcg_at_{k} by pytrec_eval", [ours[f"ndcg_at_{k}"][q] for q in queries], theirs)


def check_torchmetrics(ours, queries, rankings):
    import torch
    from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_precision, retrieval_r_precision

    torch.set_default_dtype(torch.float64)
    metrics = {
        "average_precision": retrieval_average_precision,
        "p_at_10": lambda p, t: retrieval_precision(p, t, top_k=10),
        "r_precision": retrieval_r_precision,
    }
    for name, metric in metrics.items():
        theirs = []
        for query, (fulfilled, _) in zip(queries, rankings):
            target = torch.from_numpy(fulfilled == len(query["terms"]))
            # Scores above 0: it takes others for items that were not found.
            theirs.append(metric(torch.arange(float(len(fulfilled)), 0.0, -1.0), target).item())
        largest(f"{name} by torchmetrics", ours[name], theirs)


def indicators(words):
    """Queries in a space of log-probabilities."""
    asked = np.hstack([words > 0, words < 0, np.zeros((len(words), 1))]).astype(np.float64)
    return (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)


def check_first(ours, ids, rankings, vectors, embeddings):
    """The first items of every ranking and their distances."""
    same, distances = 0, []
    for found, theirs, (_, places), vector in zip(ours["items"], ours["distances"], rankings, vectors):
        same += found == list(ids[places[: len(found)]]) and len(found) == min(100, len(places))
        d2 = ((embeddings[places[: len(found)]].astype(np.float64) - vector.astype(np.float64)) ** 2).sum(axis=1)
        distances.append(np.abs(np.array(theirs) - np.sqrt(d2)).max())
    print(f"first items: {same} of {len(rankings)} rankings the same, distances differ by at most {max(distances):.3g}")


def main():
    store, report_id = Path(sys.argv[1]), sys.argv[2]
    report = document(store, f"reports/{report_id}/manifest.json")
    place = report["generation"]
    generation = document(store, f"galleries/{place['gallery']}/{place['generation']}/manifest.json")
    model = document(store, f"models/{generation['model']}/model.json")
    ids, embeddings, labels = gallery(store, generation, report["rows"])
    record = document(store, f"jobs/{report_id}/tasks/queries.json")
    (output,) = record["output"].values()
    drawn = json.loads((store / output["object"]["key"]).read_text())
    queries = drawn["queries"]

    vectors = np.zeros((len(queries), labels.shape[1]))
    for row, query in enumerate(queries):
        for term in query["terms"]:
            if term["positive"] or model["settings"]["encoding"] != "multi-hot":
                vectors[row, term["attribute"]] = 1 if term["positive"] else -1
    if model["settings"]["encoding"] == "log-probability":
        alone, vectors = indicators(np.eye(labels.shape[1])), indicators(vectors)
    else:
        weights = safetensors(store / model["weights"]["key"])
        alone, vectors = attribute_tower(weights, np.eye(labels.shape[1])), attribute_tower(weights, vectors)
    vectors = [image_vector(q, embeddings, alone) if q["image"] else v for q, v in zip(queries, vectors)]

    ours = pq.read_table(store / report["queries"]["key"]).to_pydict()
    rankings = [ranking(query, vector, ids, embeddings, labels) for query, vector in zip(queries, vectors)]
    theirs = np.array([score(query, *ranked, labels) for query, ranked in zip(queries, rankings)])
    for column, name in enumerate(NAMES):
        largest(name, ours[name], theirs[:, column])
    check_first(ours, ids, rankings, vectors, embeddings)
    for row in report["headline"]:
        chosen = [q["set"] == row["set"] for q in queries]
        ap, chance = theirs[chosen, 0].mean(), theirs[chosen, 1].mean()
        print(f"{row['set']:8} mAP {row['map']:.12f} scikit-learn {ap:.12f}   chance {row['chance']:.12f} numpy {chance:.12f}")
    for check, arguments in ((check_trec, (store, report, ours)), (check_torchmetrics, (ours, queries, rankings))):
        try:
            check(*arguments)
        except ImportError as missing:
            print(f"not checked by {missing.name}: it is not installed")


if __name__ == "__main__":
    main()
