#!/usr/bin/env bash
# Label images on a Ray cluster that lives as long as this job of SLURM:
#   sbatch --nodes=4 tools/cluster/slurm_ray.sh IMAGES --out OUT --checkpoint C [options]
# OUT is a folder that all nodes share, or with --output-format parquet or tar also a URL.
#SBATCH --job-name=adcam-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gres=gpu:1
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --output=adcam-ray-%j.log
set -euo pipefail

export RAY_USAGE_STATS_ENABLED=0
port=${PORT:-6379}
gpus=${GPUS_PER_NODE:-1}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

start=(--num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$gpus" --disable-usage-stats --block)
srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
  ray start --head --node-ip-address "$address" --port "$port" --include-dashboard=false \
  "${start[@]}" &
sleep 15
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" \
    ray start --address "$address:$port" "${start[@]}" &
done

# The driver runs on this node, which is the head; when it ends, SLURM ends the others.
RAY_ADDRESS="$address:$port" adcam generate "$@" \
  --engine ray --address "$address:$port" --device cuda --gpus-per-process 1
