"""Runs an exported ResNet-18 in torchvision and compares with what Likeness embedded; see check-export.sh.

python check_export.py FOLDER    # model.safetensors, images, vectors, images.embedded, vectors.embedded
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import normalize

# Largest difference of a number, relative to the largest of the unit vector's numbers.
TOLERANCE = 1e-4


def main(folder):
    weights = load_file(folder / "model.safetensors")
    image = {name: tensor for name, tensor in weights.items() if not name.startswith("attributes.")}
    tower = {name.removeprefix("attributes."): t for name, t in weights.items() if name not in image}
    d = image["fc.bias"].numel()
    a = tower["linear1.weight"].shape[1]

    network = torchvision.models.resnet18(num_classes=d)
    network.load_state_dict(image)  # strict: every name must be there, and no other
    query = nn.ModuleDict({"linear1": nn.Linear(a, d), "bn1": nn.BatchNorm1d(d), "linear2": nn.Linear(d, d)})
    query.load_state_dict(tower)

    def read(name, *shape):
        return torch.from_numpy(np.fromfile(folder / name, dtype="<f4").reshape(shape))

    vectors = read("vectors", -1, a)
    side = round((np.fromfile(folder / "images", dtype="<f4").size / len(vectors) / 3) ** 0.5)
    with torch.no_grad():
        images = normalize(network.eval()(read("images", -1, 3, side, side)))
        query.eval()
        queries = normalize(query["linear2"](torch.relu(query["bn1"](query["linear1"](vectors)))))

    worst = 0.0
    for name, computed in (("images", images), ("vectors", queries)):
        ours = read(f"{name}.embedded", -1, d)
        difference = ((computed - ours).abs().max() / ours.abs().max()).item()
        print(f"{name}: {len(ours)} embeddings of {d} numbers, largest relative difference {difference:.1e}")
        worst = max(worst, difference)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
