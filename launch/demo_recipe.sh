#!/usr/bin/env bash
# The demo model from nothing: data, tower, dense base, then Dynamic-LLaVA, the dense control and "I" from that base.
#
#     launch/demo_recipe.sh WORKDIR
#
# Run again, it goes on where it was stopped: every step keeps its own work folder and needs from the others only their
# weights. SAMPLES, TOWER_STEPS, BASE_STEPS, WHOLE_STEPS, EPOCH_SAMPLES, BATCH and TRAIN_OPTIONS (launch/demo_lib.sh)
# change how long it takes.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/demo_lib.sh
data=$work/data

[[ -f $data/train.json ]] || dynllava demo make "$data" --samples "${SAMPLES:-20000}"
# The epoch's own samples: none of them was seen by the base.
[[ -f $work/epoch/train.json ]] || dynllava demo make "$work/epoch" --samples "${EPOCH_SAMPLES:-4000}" --seed 1
dynllava demo tower "$work/tower" --steps "${TOWER_STEPS:-3600}"

mkdir -p "$work/models"
train base base "$work/tower/model" "$data" --config.steps="${BASE_STEPS:-3000}"
train base_whole base_whole "$work/models/base" "$data" --config.steps="${WHOLE_STEPS:-600}"
for name in dynamic control vision_only; do
  train "$name" "$name" "$work/models/base_whole" "$work/epoch"
done

# What comes with the package.
merge dynamic embedded --dtype bfloat16
for model in base_whole dynamic control; do
  dynllava eval demo --model "$work/models/$model" --rows "$work/rows"
done
