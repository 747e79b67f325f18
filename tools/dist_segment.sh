#!/usr/bin/env bash
# Train a segmentation network on several GPUs of one machine:
#   tools/dist_segment.sh CONFIG GPUS [--work-dir … --cfg-options …]
# On several machines, start it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail

config=$1
gpus=$2
shift 2

exec torchrun \
  --nnodes "${NNODES:-1}" \
  --node-rank "${NODE_RANK:-0}" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" \
  --master-port "${PORT:-29500}" \
  --nproc-per-node "$gpus" \
  -m adcam segment train "$config" --launcher pytorch "$@"
