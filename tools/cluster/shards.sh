#!/usr/bin/env bash
# Label images in N processes on this machine, each with a shard of its own, then join them:
#   tools/cluster/shards.sh N IMAGES --out OUT --checkpoint C [other options of adcam generate]
# On several machines that share OUT, start it on each with FIRST and TOTAL set, such as
# FIRST=0 TOTAL=16 on the first of two with N=8 and FIRST=8 TOTAL=16 on the second; then run
# `adcam merge OUT` once. Run again, it resumes.
set -euo pipefail

count=$1
shift
first=${FIRST:-0}
total=${TOTAL:-$count}

out=
previous=
for word in "$@"; do
  [[ $previous == --out ]] && out=$word
  [[ $word == --out=* ]] && out=${word#--out=}
  previous=$word
done
[[ -n $out ]] || { echo "name the output folder with --out" >&2; exit 2; }

processes=()
trap '[[ ${#processes[@]} -eq 0 ]] || kill "${processes[@]}" 2>/dev/null || true' INT TERM
for ((i = first; i < first + count; i++)); do
  adcam generate "$@" --shard "$i/$total" --workers 0 &
  processes+=($!)
done

status=0
for process in "${processes[@]}"; do
  code=0
  wait "$process" || code=$?
  ((code <= status)) || status=$code
done
# An image that failed (exit code 1) stops nothing; the manifest names it.
if ((total == count && (status == 0 || status == 1))); then
  adcam merge "$out"
fi
exit "$status"
