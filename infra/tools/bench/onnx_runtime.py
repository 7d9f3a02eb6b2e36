"""Forward passes of torchvision's ResNets in ONNX Runtime.

python3 onnx_runtime.py WORK MODELS [--repetitions N] [--threads N]

MODELS is a folder for exported models; one that is not there yet is exported by a process of its own, so that PyTorch's
memory does not count here.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from works import NETWORKS, Network


def export(work: Network, file: Path) -> None:
    import torch
    from pytorch import image_tower

    torch.manual_seed(0)
    images = torch.randn(work.batch, 3, work.px, work.px)
    draft = file.with_suffix(".draft.onnx")
    torch.onnx.export(image_tower(work).eval(), (images,), draft, input_names=["images"], external_data=False)
    draft.rename(file)


def model_file(name: str, work: Network, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.onnx"
    if not file.exists():
        subprocess.run([sys.executable, __file__, name, str(folder), "--export"], check=True, stdout=subprocess.DEVNULL)
    return file


def forward(file: Path, work: Network, threads: int):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    shape = (work.batch, 3, work.px, work.px)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    return lambda: session.run(None, {"images": images})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=[name for name, work in NETWORKS.items() if not work.training])
    parser.add_argument("models", type=Path)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="only write the model")
    args = parser.parse_args()
    work = NETWORKS[args.work]
    if args.export:
        export(work, args.models / f"{args.work}.onnx")
        return
    from timing import measure

    file = model_file(args.work, work, args.models)
    measure("ONNX Runtime", args.work, args.repetitions, forward(file, work, args.threads))


if __name__ == "__main__":
    main()
