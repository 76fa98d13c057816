#!/usr/bin/env bash
# The demo model from nothing: data, tower, dense base, then Dynamic-LLaVA, the dense control and "I" from that base.
#
#     launch/demo_recipe.sh WORKDIR
#
# Run again, it goes on where it was stopped: every step keeps its own work folder and needs from the others only their
# weights. The defaults are those of the embedded model (docs/demo.md), for which a GPU takes minutes, a CPU core
# some hours. Variables: launch/demo_lib.sh, and
#
# SAMPLES, EPOCH_SAMPLES               pictures for the base, and for the epoch (60000, 8192)
# WORKERS                              processes that draw them (1)
# TOWER_STEPS, BASE_STEPS, WHOLE_STEPS steps of the tower and of the base's two halves (3600, 1700, 400)
# BASE_BATCH                           pictures of a step of the base's first half (BATCH, or 32)
set -euo pipefail
# shellcheck source=launch/demo_lib.sh
source "$(dirname "$0")/demo_lib.sh"
data=$work/data

[[ -f $data/train.json ]] || dynllava demo make "$data" --samples "${SAMPLES:-60000}" --workers "${WORKERS:-1}"
# The epoch's own samples: none of them was seen by the base.
[[ -f $work/epoch/train.json ]] ||
  dynllava demo make "$work/epoch" --samples "${EPOCH_SAMPLES:-8192}" --seed 1 --workers "${WORKERS:-1}"
dynllava demo tower "$work/tower" --steps "${TOWER_STEPS:-3600}"

mkdir -p "$work/models"
BATCH=${BASE_BATCH:-${BATCH:-32}} train base base "$work/tower/model" "$data" --config.steps="${BASE_STEPS:-1700}"
train base_whole base_whole "$work/models/base" "$data" --config.steps="${WHOLE_STEPS:-400}"
for name in dynamic control vision_only; do
  train "$name" "$name" "$work/models/base_whole" "$work/epoch"
done

# What comes with the package.
merge dynamic embedded --dtype bfloat16
for model in base_whole dynamic control; do
  dynllava eval demo --model "$work/models/$model" --rows "$work/rows"
done
