"""Makes the JPEGs that all decoders read: real faces where CelebA is at hand, else drawn ones; the same bytes each time.

python3 images.py FOLDER [CELEBA] writes FOLDER/178x218 and FOLDER/500x500. Quality and chroma subsampling are what CelebA's own
files have; drawn images carry as much detail (bytes per pixel) as photographs of that quality.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from works import DECODES

COUNT = 64
QUALITY = 85
# Standard deviation of the finest noise; with it a 178×218 image takes about 8 KB, as in CelebA.
DETAIL = 1.0


def octaves(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls with its frequency, as in photographs, with a few hard-edged ellipses in it."""
    total = np.zeros((height, width, 3), np.float32)
    cell = 128
    while cell >= 1:
        grid = random.normal(0, 1, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(grid[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
            total[:, :, channel] += DETAIL * cell**0.7 * np.asarray(layer)
        # Eyes see, and cameras keep, more detail in brightness than in colour.
        if cell <= 4:
            total[:, :, :] += (DETAIL * cell**0.7 * random.normal(0, 1, (height, width, 1))).astype(np.float32)
        cell //= 2
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(6):
        centre_x, centre_y = random.uniform(0, width), random.uniform(0, height)
        radius_x, radius_y = random.uniform(0.05, 0.4, 2) * (width, height)
        inside = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1
        total[inside] += random.uniform(-60, 60, 3).astype(np.float32)
    return Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))


def pictures(width: int, height: int, celeba: Path | None):
    files = sorted((celeba / "img_align_celeba").glob("*.jpg"))[:COUNT] if celeba else []
    for file in files:
        yield Image.open(file).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    for number in range(len(files), COUNT):
        yield octaves(np.random.default_rng(number), width, height)


def main() -> None:
    folder = Path(sys.argv[1])
    celeba = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    for decode in DECODES.values():
        target = folder / decode.folder
        target.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures(decode.width, decode.height, celeba)):
            picture.save(target / f"{number:03}.jpg", quality=QUALITY, subsampling="4:2:0")


if __name__ == "__main__":
    main()
