#!/usr/bin/env bash
# The three commands that a newcomer types, in the current folder, timed; called by `make demo`.
set -euo pipefail
started=$SECONDS
toolchain train
toolchain shrink model.onnx
toolchain bench --device cpu --json bench.json
cat <<END

Done in $((SECONDS - started)) s. In $PWD:
  model.onnx          the trained network at its original shapes, removed neurons as exact zeros
  model.shrunk.onnx   the same function with smaller tensors
  bench.json          every measured sample
  runs/               recipe, metrics, gates and checkpoints of the training run
END
