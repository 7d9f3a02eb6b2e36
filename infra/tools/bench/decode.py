"""JPEGs in memory to a normalised f32 batch with the libraries that others use, on one thread.

python3 decode.py ENGINE WORK FOLDER [--repetitions N]

Every engine keeps the centre square, resizes it and writes (x / 255 - mean) / std into an NCHW batch that is reused. Those that
can decode at a reduced scale are measured both ways.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from timing import measure
from works import DECODES, MEAN, STD, Decode


def centre(width: int, height: int) -> tuple[int, int, int]:
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


class Pillow:
    """Decode, antialiased bilinear resize of the centre square; `draft` lets libjpeg decode at a reduced scale."""

    def __init__(self, draft: bool) -> None:
        from PIL import Image

        self.image, self.draft = Image, draft

    def __call__(self, data: bytes, px: int, out: np.ndarray) -> None:
        image = self.image.open(io.BytesIO(data))
        if self.draft:
            image.draft("RGB", (px, px))
        left, top, side = centre(*image.size)
        box = (left, top, left + side, top + side)
        small = image.convert("RGB").resize((px, px), self.image.Resampling.BILINEAR, box=box)
        normalise(np.asarray(small), out)


class OpenCv:
    """`imdecode`, area resize (its antialiased one) of the centre square."""

    def __init__(self, reduced: bool) -> None:
        import cv2

        cv2.setNumThreads(1)
        self.cv2, self.reduced = cv2, reduced

    def __call__(self, data: bytes, px: int, out: np.ndarray) -> None:
        cv2 = self.cv2
        # Both images of the works are more than twice the input's side.
        flag = cv2.IMREAD_REDUCED_COLOR_2 if self.reduced else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        left, top, side = centre(image.shape[1], image.shape[0])
        small = cv2.resize(image[top : top + side, left : left + side], (px, px), interpolation=cv2.INTER_AREA)
        normalise(small[:, :, ::-1], out)


class TorchVision:
    """`decode_jpeg`, antialiased bilinear resize of the centre square, on uint8."""

    def __init__(self) -> None:
        import torch
        from torchvision.io import decode_jpeg
        from torchvision.transforms.v2 import functional

        torch.set_num_threads(1)
        self.torch, self.decode_jpeg, self.functional = torch, decode_jpeg, functional
        self.mean = 255 * torch.tensor(MEAN).reshape(3, 1, 1)
        self.inverse_std = 1 / (255 * torch.tensor(STD).reshape(3, 1, 1))

    def __call__(self, data: bytes, px: int, out: np.ndarray) -> None:
        torch = self.torch
        image = self.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        left, top, side = centre(image.shape[2], image.shape[1])
        small = self.functional.resized_crop(image, top, left, side, side, [px, px], antialias=True)
        torch.from_numpy(out).copy_((small.float() - self.mean) * self.inverse_std)


SCALE = np.float32(1 / (255 * np.array(STD, np.float32)))
SHIFT = np.float32(-np.array(MEAN, np.float32) / np.array(STD, np.float32))


def normalise(pixels: np.ndarray, out: np.ndarray) -> None:
    for channel in range(3):
        np.multiply(pixels[:, :, channel], SCALE[channel], out=out[channel])
        out[channel] += SHIFT[channel]


ENGINES = {
    "Pillow": lambda: Pillow(draft=False),
    "Pillow draft": lambda: Pillow(draft=True),
    "OpenCV": lambda: OpenCv(reduced=False),
    "OpenCV reduced": lambda: OpenCv(reduced=True),
    "torchvision": TorchVision,
}


def batch_of(engine: str, work: Decode, folder: Path):
    """The engine's closure over the images of a folder, and the batch that it fills."""
    images = [file.read_bytes() for file in sorted((folder / work.folder).glob("*.jpg"))]
    batch = np.empty((len(images), 3, work.px, work.px), np.float32)
    load = ENGINES[engine]()

    def run() -> None:
        for data, out in zip(images, batch):
            load(data, work.px, out)

    return run, batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("work", choices=DECODES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    run, batch = batch_of(args.engine, DECODES[args.work], args.folder)
    measure(args.engine, args.work, args.repetitions, run, items=len(batch))


if __name__ == "__main__":
    main()
