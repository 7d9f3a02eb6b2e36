#!/usr/bin/env bash
# Type-checks what only a build for CUDA compiles, without a card or a CUDA toolkit: compiler and headers come by pip, into
# target/cuda. Takes some minutes the first time. Runs nothing on a device.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=$root/target/cuda
# nvcc refuses headers of another release.
release='13.2.*'

if [ ! -e "$out/venv/complete" ]; then
  python3 -m venv "$out/venv"
  "$out/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "nvidia-cuda-nvcc==$release" "nvidia-cuda-crt==$release" "nvidia-nvvm==$release" \
    "nvidia-cuda-cccl==$release" "nvidia-cuda-runtime==$release"
  touch "$out/venv/complete"
fi
toolkit=$(echo "$out"/venv/lib/python3*/site-packages/nvidia/cu13)
export PATH=$toolkit/bin:$PATH CUDA_HOME=$toolkit CUDA_PATH=$toolkit NVCC=$toolkit/bin/nvcc
# With no card to ask: which one to compile for, and which release of CUDA the bindings are for.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CUDARC_CUDA_VERSION=13020
cargo check --manifest-path "$root/Cargo.toml" --target-dir "$out" --package likeness-model --features cuda
