"""Packs what draw.mjs drew into one CelebA-style Parquet file.

    python3 pack.py DRAWN avatars.parquet        (needs pillow and pyarrow)

Columns: `image`, a struct of `bytes` (JPEG) and `path`, as on the Hugging Face hub; one boolean per attribute;
`split`: train, validation or test.
"""

import io
import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

JPEG_QUALITY = 85
ROW_GROUP_ROWS = 500


def jpeg(path: pathlib.Path) -> bytes:
    encoded = io.BytesIO()
    Image.open(path).convert("RGB").save(encoded, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return encoded.getvalue()


def table(drawn: pathlib.Path) -> pa.Table:
    labels = json.loads((drawn / "labels.json").read_text())
    rows = labels["rows"]
    images = [{"bytes": jpeg(drawn / f"{row['file']}.png"), "path": f"{row['file']}.jpg"} for row in rows]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, image_type)}
    for name in labels["names"]:
        columns[name] = pa.array([name in row["has"] for row in rows], pa.bool_())
    columns["split"] = pa.array([row["split"] for row in rows], pa.string())
    return pa.table(columns)


def main() -> None:
    drawn, target = (pathlib.Path(argument) for argument in sys.argv[1:3])
    # Images are compressed already.
    compression = {"image.bytes": "NONE"}
    packed = table(drawn)
    for column in packed.column_names[1:] + ["image.path"]:
        compression[column] = "ZSTD"
    pq.write_table(packed, target, row_group_size=ROW_GROUP_ROWS, compression=compression, use_dictionary=["split"])


if __name__ == "__main__":
    main()
