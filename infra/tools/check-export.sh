#!/usr/bin/env bash
# Exports a ResNet-18 of ours and runs it in torchvision: both must embed alike. PyTorch comes by pip, into target/export;
# LIKENESS_PYTHON names a Python that has torch, torchvision and safetensors already.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if [ -z "${LIKENESS_PYTHON:-}" ]; then
  venv=$root/target/export/venv
  if [ ! -e "$venv/complete" ]; then
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch torchvision safetensors numpy
    touch "$venv/complete"
  fi
  export LIKENESS_PYTHON=$venv/bin/python
fi
cargo test --manifest-path "$root/Cargo.toml" --package likeness-model --test export -- --nocapture
