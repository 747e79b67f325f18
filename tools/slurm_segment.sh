#!/usr/bin/env bash
# Train a segmentation network under SLURM:
#   GPUS=8 tools/slurm_segment.sh PARTITION JOB_NAME CONFIG [--work-dir … --cfg-options …]
# GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS change the request.
set -euo pipefail

partition=$1
job_name=$2
config=$3
shift 3
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}

# shellcheck disable=SC2086 # SRUN_ARGS holds several words
exec srun \
  --partition "$partition" \
  --job-name "$job_name" \
  --gres "gpu:$gpus_per_node" \
  --ntasks "$gpus" \
  --ntasks-per-node "$gpus_per_node" \
  --cpus-per-task "${CPUS_PER_TASK:-5}" \
  --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} \
  python -u -m adcam segment train "$config" --launcher slurm "$@"
