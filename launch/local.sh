#!/usr/bin/env bash
# One machine, all of its GPUs (or a TPU host, or a CPU): one process drives them all.
#
#     launch/local.sh --config=configs/dynamic_llava_7b.py --workdir=RUN --config.init.checkpoint=DST \
#         --config.data.source=data.json --config.data.images=DIR
#
# Takes the options of `dynllava train`, and --dry-run. From the environment:
#   GPUS  how many GPUs (all): the first of the machine, or of CUDA_VISIBLE_DEVICES where that is set
# and what lib.sh (MAX_RESTARTS, PAUSE) and process.sh (COMPILE_CACHE) name. Ctrl-C and SIGTERM save and stop,
# SIGUSR1 saves and starts again.
set -euo pipefail
launch=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib.sh
source "$launch/lib.sh"
words "$@"
gpus=()
if [[ ${GPUS:-} ]]; then
  whole GPUS
  IFS=, read -ra ids <<<"${CUDA_VISIBLE_DEVICES-$(seq -s, 0 $((GPUS - 1)))}"
  if ((${#ids[@]} < GPUS)); then
    say "error: GPUS=$GPUS, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES lets this machine use ${#ids[@]} of its GPUs"
    exit 2
  fi
  gpus=(env "CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${ids[*]:0:GPUS}")")
fi
supervise "${gpus[@]}" "$launch/process.sh" "${options[@]}"
