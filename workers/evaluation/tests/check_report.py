#!/usr/bin/env python3
"""Recomputes a report from the gallery's Parquet shards with numpy and scikit-learn, and compares.

    python3 check_report.py STORE REPORT      (STORE: folder of the store; REPORT: id of the job)

Needs numpy, pyarrow and scikit-learn. Nothing of Likeness is used: labels, embeddings and scores are read
with pyarrow, the attribute tower is run in numpy from the safetensors file, AP is scikit-learn's.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score


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


def score(query, vector, ids, embeddings, labels):
    asked = [term["attribute"] for term in query["terms"]]
    signs = np.array([1 if term["positive"] else -1 for term in query["terms"]])
    judged = (labels[:, asked] != 0).all(axis=1)
    relevant = (labels[:, asked] == signs).all(axis=1)[judged]
    d2 = ((embeddings[judged].astype(np.float64) - vector.astype(np.float64)) ** 2).sum(axis=1)
    by_id = np.argsort([item.encode() for item in ids[judged]])
    order = by_id[np.argsort(d2[by_id], kind="stable")]
    ranked = relevant[order]
    ap = average_precision_score(ranked, -np.arange(len(ranked)))
    return [ap, ranked.mean()] + [ranked[:k].sum() / k for k in (1, 5, 10, 100)]


def main():
    store, report_id = Path(sys.argv[1]), sys.argv[2]
    report = document(store, f"reports/{report_id}/manifest.json")
    place = report["generation"]
    generation = document(store, f"galleries/{place['gallery']}/{place['generation']}/manifest.json")
    model = document(store, f"models/{generation['model']}/model.json")
    ids, embeddings, labels = gallery(store, generation, report["rows"])
    record = document(store, f"jobs/{report_id}/tasks/queries.json")
    drawn = json.loads((store / record["output"]["queries"]["object"]["key"]).read_text())

    vectors = np.zeros((len(drawn["queries"]), labels.shape[1]))
    for row, query in enumerate(drawn["queries"]):
        for term in query["terms"]:
            if term["positive"] or model["settings"]["encoding"] == "three-state":
                vectors[row, term["attribute"]] = 1 if term["positive"] else -1
    vectors = attribute_tower(safetensors(store / model["weights"]["key"]), vectors)

    names = ["average_precision", "chance", "p_at_1", "p_at_5", "p_at_10", "p_at_100"]
    ours = pq.read_table(store / report["queries"]["key"]).to_pydict()
    theirs = np.array([score(q, v, ids, embeddings, labels) for q, v in zip(drawn["queries"], vectors)])
    for column, name in enumerate(names):
        print(f"{name:18} largest difference {np.abs(np.array(ours[name]) - theirs[:, column]).max():.3g}")
    for row in report["headline"]:
        chosen = [q["set"] == row["set"] for q in drawn["queries"]]
        ap, chance = theirs[chosen, 0].mean(), theirs[chosen, 1].mean()
        print(f"{row['set']:8} mAP {row['map']:.12f} scikit-learn {ap:.12f}   chance {row['chance']:.12f} numpy {chance:.12f}")


if __name__ == "__main__":
    main()
