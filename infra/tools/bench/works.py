"""What the engines are asked to do, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A forward pass or a training step of a ResNet on a batch of square images."""

    model: str
    px: int
    training: bool
    batch: int


NETWORKS = {
    f"{model}-{px}-{'train' if training else 'forward'}-b{batch}": Network(model, px, training, batch)
    for model, px, training, batch in [
        ("resnet18", 64, False, 64),
        ("resnet18", 64, False, 8),
        ("resnet18", 224, False, 8),
        ("resnet50", 224, False, 8),
        ("resnet50", 224, False, 32),
        ("resnet18", 64, True, 64),
        ("resnet50", 224, True, 8),
    ]
}


@dataclass(frozen=True)
class Decode:
    """JPEGs of one size to a normalised batch of square images."""

    width: int
    height: int
    px: int

    @property
    def folder(self) -> str:
        return f"{self.width}x{self.height}"


DECODES = {
    f"decode-{width}x{height}-{px}": Decode(width, height, px) for width, height, px in [(178, 218, 64), (500, 500, 224)]
}

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EMBEDDING_DIM, ATTRIBUTES = 300, 40
