"""The models that `infra/bench training` holds ours against, in PyTorch: the article's two towers, and a classifier.

Same images, input, batches per epoch, optimizer and schedule as ours by default: `cnn-s` (a ResNet-18 of base width 32), AdamW
at 2e-3 with a linear rise and half a cosine, mirror and a shift of up to a tenth of the side.

`article`: whole attribute vectors (±1), negatives two of another image to one of the positive with 1–3 attributes turned round,
triplet loss of margin 0.1. `classifier`: a logit per attribute, binary cross-entropy.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

PX = 64
SHIFT = 6
BATCH = 128
DIM = 300
LR, WEIGHT_DECAY, WARM_UP = 2e-3, 0.01, 0.1
MARGIN = 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Faces:
    """One split: images (N, 3, 64, 64) ready for the network, labels (N, A) of ±1, item names."""

    images: torch.Tensor
    labels: torch.Tensor
    items: list[str]


def read(folder: Path) -> tuple[list[str], dict[int, Faces]]:
    """A folder in CelebA's layout: attribute names, and the splits by their number."""
    lines = (folder / "list_attr_celeba.txt").read_text().splitlines()
    names = lines[1].split()
    labels = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in lines[2:] if line.strip()}
    splits = dict(line.split() for line in (folder / "list_eval_partition.txt").read_text().splitlines() if line.strip())
    faces = {}
    for split in (0, 1, 2):
        items = [item for item in labels if splits.get(item) == str(split)]
        pixels = np.stack([square(folder / "img_align_celeba" / item) for item in items])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
        images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        faces[split] = Faces(images.contiguous(), torch.tensor([labels[item] for item in items]).float(), items)
    return names, faces


def square(path: Path) -> np.ndarray:
    """The largest centred square, resized."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((PX, PX), Image.Resampling.BILINEAR))


class ImageTower(nn.Module):
    """`cnn-s`: torchvision's ResNet-18 with half its channels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=outputs, width_per_group=64)
        net.inplanes = 32
        net.conv1, net.bn1 = nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32)
        for number, (planes, stride) in enumerate([(32, 1), (64, 2), (128, 2), (256, 2)], 1):
            setattr(net, f"layer{number}", net._make_layer(BasicBlock, planes, 2, stride))
        net.fc = nn.Linear(256, outputs)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


class AttributeTower(nn.Module):
    def __init__(self, attributes: int) -> None:
        super().__init__()
        self.linear1, self.bn1, self.linear2 = nn.Linear(attributes, DIM), nn.BatchNorm1d(DIM), nn.Linear(DIM, DIM)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.linear2(F.relu(self.bn1(self.linear1(words)))))


def augmented(images: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Each image mirrored by a coin and shifted by up to SHIFT pixels, its edge repeated."""
    padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
    out = torch.empty_like(images)
    shifts = torch.randint(0, 2 * SHIFT + 1, (len(images), 2), generator=dice)
    coins = torch.rand(len(images), generator=dice) < 0.5
    for i, ((dx, dy), mirror) in enumerate(zip(shifts.tolist(), coins.tolist())):
        image = padded[i, :, dy : dy + PX, dx : dx + PX]
        out[i] = image.flip(-1) if mirror else image
    return out


def negatives(labels: torch.Tensor, pool: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Two of another image to one of the positive with 1–3 attributes turned round."""
    others = pool[torch.randint(0, len(pool), (len(labels),), generator=dice)]
    flip = torch.rand(len(labels), generator=dice) < 1 / 3
    same = (others == labels).all(1)
    turned = labels.clone()
    for i in torch.nonzero(flip | same).flatten().tolist():
        count = int(torch.randint(1, 4, (1,), generator=dice))
        some = torch.randperm(labels.shape[1], generator=dice)[:count]
        turned[i, some] *= -1
    return torch.where((flip | same)[:, None], turned, others)


def trained(method: str, train: Faces, seed: int, epochs: int) -> dict[str, nn.Module]:
    """`article` or `classifier` after so many epochs."""
    torch.manual_seed(seed)
    dice = torch.Generator().manual_seed(seed)
    attributes = train.labels.shape[1]
    image = ImageTower(DIM if method == "article" else attributes)
    towers = {"image": image}
    if method == "article":
        towers["attributes"] = AttributeTower(attributes)
    image.to(memory_format=torch.channels_last)
    parameters = [p for tower in towers.values() for p in tower.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(train.images) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    for step in range(steps):
        if step % (steps // epochs) == 0:
            order = torch.randperm(len(train.images), generator=dice)
        rows = order[(step % (steps // epochs)) * BATCH :][:BATCH]
        images = augmented(train.images[rows], dice).contiguous(memory_format=torch.channels_last)
        outputs, labels = image(images), train.labels[rows]
        if method == "article":
            place = towers["attributes"]
            positive, negative = place(labels), place(negatives(labels, train.labels, dice))
            loss = F.triplet_margin_loss(F.normalize(outputs), positive, negative, margin=MARGIN)
        else:
            loss = F.binary_cross_entropy_with_logits(outputs, (labels > 0).float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: tower.eval() for name, tower in towers.items()}


def rate(step: int, steps: int) -> float:
    rise = math.ceil(WARM_UP * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min((step - rise) / max(steps - rise, 1), 1)))


@torch.no_grad()
def outputs(towers: dict[str, nn.Module], faces: Faces) -> torch.Tensor:
    return torch.cat([towers["image"](images) for images in faces.images.split(256)])


@torch.no_grad()
def scores(method: str, towers: dict[str, nn.Module], train: Faces, test: Faces, words: torch.Tensor) -> dict[str, torch.Tensor]:
    """For every reading of a partial query, what every image (N) gets for every query (Q): (Q, N), larger is better."""
    found = outputs(towers, test).double()
    if method == "classifier":
        likely, unlikely = F.logsigmoid(found), F.logsigmoid(-found)
        return {method: (words > 0).double() @ likely.T + (words < 0).double() @ unlikely.T}
    places = F.normalize(found)
    mean = torch.where(words == 0, train.labels.mean(0), words)
    place = towers["attributes"]
    return {f"{method}, unsaid {name}": place(said).double() @ places.T for name, said in (("0", words), ("at the mean", mean))}


def average_precision(scores: torch.Tensor, relevant: torch.Tensor, items: list[str]) -> np.ndarray:
    """Per query; of equal scores the lesser item id comes first."""
    order = np.argsort(np.array(items), kind="stable")
    scores, relevant = scores.numpy()[:, order], relevant.numpy()[:, order]
    ranks = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(relevant, ranks, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / hits.sum(1)
