"""Writes expected.json: what PyTorch and torchvision compute (in f64) for the cases of ../src/pytorch_tests.rs.

Weights and inputs are made by a formula on both sides, so that no fixture of weights is needed. Of a large tensor
two numbers are kept: its norm, and its scalar product with a vector made by the same formula.

    python expected.py > expected.json       # numpy, torch, torchvision
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

torch.set_default_dtype(torch.float64)
A, D, B, MARGIN, LR = 10, 24, 8, 0.1, 2e-3


def noise(count, phase):
    """`count` values in [-1, 1) that look random: an integer hash of position and phase."""
    k = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(phase) * np.uint32(40503)
    k ^= k >> np.uint32(15)
    k *= np.uint32(2246822519)
    k ^= k >> np.uint32(13)
    k *= np.uint32(3266489917)
    k ^= k >> np.uint32(16)
    # By way of f32, as the other side has it.
    return torch.tensor((k.astype(np.float64) / 2**31 - 1).astype(np.float32).astype(np.float64))


def phase(name):
    return sum((i + 1) * byte for i, byte in enumerate(name.encode()))


def weights(name, shape):
    v = noise(math.prod(shape), phase(name))
    if name.endswith("running_var"):
        v = 1 + 0.25 * v
    elif name.endswith("running_mean") or len(shape) == 1 and name.endswith("bias"):
        v = 0.125 * v
    elif len(shape) == 1:
        v = 1 + 0.125 * v
    elif len(shape) == 2:
        v = v / math.sqrt(shape[1])
    else:
        v = v * math.sqrt(6 / (shape[0] * shape[2] * shape[3]))
    return v.float().double().reshape(shape)


class CnnS(ResNet):
    """torchvision's ResNet-18 at base width 32."""

    def __init__(self, num_classes):
        nn.Module.__init__(self)
        self._norm_layer, self.inplanes, self.dilation, self.groups, self.base_width = nn.BatchNorm2d, 32, 1, 1, 64
        self.conv1 = nn.Conv2d(3, 32, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._make_layer(BasicBlock, 32, 2)
        self.layer2 = self._make_layer(BasicBlock, 64, 2, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 128, 2, stride=2)
        self.layer4 = self._make_layer(BasicBlock, 256, 2, stride=2)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(256, num_classes)


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1, self.bn1, self.linear2 = nn.Linear(A, D), nn.BatchNorm1d(D), nn.Linear(D, D)

    def forward(self, x):
        return F.normalize(self.linear2(F.relu(self.bn1(self.linear1(x)))))


class Image(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return F.normalize(self.net(x))


def fill(module, prefix):
    state = module.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = weights(prefix + name, list(tensor.shape))
    module.load_state_dict(state)
    return module


def images(count, px):
    return noise(count * 3 * px * px, 1).reshape(count, 3, px, px)


def vectors(count, which):
    """-1, 0, 1"""
    return torch.floor((noise(count * A, which) + 1) * 1.5).reshape(count, A) - 1


def sketch(tensor):
    flat = tensor.detach().flatten()
    return [flat.norm().item(), (flat @ noise(len(flat), 9)).item()]


def named(net, tower, of):
    pairs = [(f"image.{n}", p) for n, p in of(net)] + [(f"attributes.{n}", p) for n, p in of(tower)]
    return {n: sketch(p) for n, p in pairs if not n.endswith("num_batches_tracked")}


def training():
    net, tower = fill(CnnS(D), "image."), fill(Attributes(), "attributes.")
    image = Image(net)
    optimizer = torch.optim.AdamW([*net.parameters(), *tower.parameters()], lr=LR, weight_decay=0.01)
    x, positives, negatives = images(B, 64), vectors(B, 2), vectors(B, 3)
    anchor, positive, negative = image(x), tower(positives), tower(negatives)
    loss = nn.TripletMarginLoss(margin=MARGIN)(anchor, positive, negative)
    loss.backward()
    result = {
        "anchor": sketch(anchor), "positive": sketch(positive), "negative": sketch(negative), "loss": loss.item(),
        "dp": F.pairwise_distance(anchor, positive).tolist(), "dn": F.pairwise_distance(anchor, negative).tolist(),
        "gradients": named(net, tower, lambda m: ((n, p.grad) for n, p in m.named_parameters())),
    }
    before = {p: p.detach().clone() for p in [*net.parameters(), *tower.parameters()]}
    optimizer.step()
    result["changes"] = named(net, tower, lambda m: ((n, p - before[p]) for n, p in m.named_parameters()))
    result["statistics"] = named(net, tower, lambda m: m.named_buffers())
    net.eval(), tower.eval()
    result["anchor_after"], result["positive_after"] = sketch(image(x)), sketch(tower(positives))
    return result


def inference(make, px, count=2):
    net = fill(make(num_classes=D), "image.").eval()
    shapes = {n: list(t.shape) for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    with torch.no_grad():
        return {"px": px, "shapes": shapes, "embeddings": Image(net)(images(count, px)).flatten().tolist()}


print(json.dumps({
    "training": training(),
    "cnn-s": inference(CnnS, 64),
    "resnet18": inference(torchvision.models.resnet18, 96),
    "resnet50": inference(torchvision.models.resnet50, 64),
    "resnet34": inference(torchvision.models.resnet34, 64),
    "resnet101": inference(torchvision.models.resnet101, 64),
}, indent=0))
