#!/usr/bin/env bash
# Label images as a job array of SLURM, one shard an element, without any service between them:
#   sbatch --array=0-63 tools/cluster/slurm_shards.sh IMAGES --out OUT --checkpoint C [options]
# The elements follow each other from 0 without gaps. A job that ran out of time or was preempted is
# put back into the queue and resumes. When all have ended: adcam merge OUT
#SBATCH --job-name=adcam
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=adcam-%A_%a.log
set -euo pipefail

exec srun adcam generate "$@" --shard auto --workers "$((SLURM_CPUS_PER_TASK - 1))"
