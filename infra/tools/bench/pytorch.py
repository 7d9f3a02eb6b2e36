"""Forward passes and training steps of torchvision's ResNets in PyTorch.

python3 pytorch.py WORK --layout nchw|channels-last [--repetitions N] [--threads N]

A training step is what our trainer does: images through the network and a linear head, positive and negative attribute vectors
through a two-layer perceptron, all to unit length, triplet loss, AdamW.
"""

import argparse

import torch
import torchvision
from timing import measure
from torch import nn
from torch.nn import functional
from works import ATTRIBUTES, EMBEDDING_DIM, NETWORKS, Network

MARGIN = 0.1


class Unit(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(x)


def image_tower(work: Network) -> nn.Module:
    return nn.Sequential(torchvision.models.get_model(work.model, weights=None, num_classes=EMBEDDING_DIM), Unit())


def attribute_tower() -> nn.Module:
    hidden = [nn.Linear(ATTRIBUTES, EMBEDDING_DIM), nn.BatchNorm1d(EMBEDDING_DIM), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM), Unit())


def forward(work: Network, layout: torch.memory_format):
    tower = image_tower(work).eval().to(memory_format=layout)
    images = torch.randn(work.batch, 3, work.px, work.px).to(memory_format=layout)

    def run() -> None:
        with torch.inference_mode():
            tower(images)

    return run


def training_step(work: Network, layout: torch.memory_format):
    image, attributes = image_tower(work).train().to(memory_format=layout), attribute_tower().train()
    images = torch.randn(work.batch, 3, work.px, work.px).to(memory_format=layout)
    positives, negatives = (torch.randint(-1, 2, (work.batch, ATTRIBUTES)).float() for _ in range(2))
    optimizer = torch.optim.AdamW([*image.parameters(), *attributes.parameters()], lr=2e-3, weight_decay=0.01)
    criterion = nn.TripletMarginLoss(margin=MARGIN)

    def run() -> None:
        optimizer.zero_grad()
        loss = criterion(image(images), attributes(positives), attributes(negatives))
        loss.backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=NETWORKS)
    parser.add_argument("--layout", choices=["nchw", "channels-last"], default="nchw")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    work = NETWORKS[args.work]
    layout = torch.channels_last if args.layout == "channels-last" else torch.contiguous_format
    run = training_step(work, layout) if work.training else forward(work, layout)
    engine = "PyTorch channels-last" if args.layout == "channels-last" else "PyTorch NCHW"
    measure(engine, args.work, args.repetitions, run)


if __name__ == "__main__":
    main()
