#!/usr/bin/env bash
# The demo model from nothing: data, tower, dense base, then Dynamic-LLaVA, the dense control and "I" from that base.
#
#     launch/demo_recipe.sh WORKDIR
#
# Run again, it goes on where it was stopped: every step keeps its own work folder and needs from the others only their
# weights. SAMPLES, TOWER_STEPS, BASE_STEPS, WHOLE_STEPS, EPOCH_SAMPLES and BATCH change how long it takes.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1
data=$work/data

[[ -f $data/train.json ]] || dynllava demo make "$data" --samples "${SAMPLES:-20000}"
# The epoch's own samples: none of them was seen by the base.
[[ -f $work/epoch/train.json ]] || dynllava demo make "$work/epoch" --samples "${EPOCH_SAMPLES:-4000}" --seed 1
dynllava demo tower "$work/tower" --steps "${TOWER_STEPS:-3600}"

# merge RUN NAME [OPTION ...]: the model of a run, made anew when the run has gone on since
merge() {
  local run=$work/$1 model=$work/models/$2
  shift 2
  [[ $run/checkpoints -nt $model ]] && rm -rf "$model"
  [[ -d $model ]] || dynllava convert merge "$run" "$model" "$@"
}

# train CONFIG START_WEIGHTS DATA [OVERRIDE ...]
train() {
  local name=$1 start=$2 from=$3
  shift 3
  dynllava train --config="configs/demo/$name.py" --workdir="$work/$name" --config.init.checkpoint="$start" \
    --config.data.source="$from/train.json" --config.data.images="$from" \
    --config.global_batch_size="${BATCH:-8}" "$@"
  merge "$name" "$name"
}

mkdir -p "$work/models"
train base "$work/tower/model" "$data" --config.steps="${BASE_STEPS:-3000}"
train base_whole "$work/models/base" "$data" --config.steps="${WHOLE_STEPS:-600}"
train dynamic "$work/models/base_whole" "$work/epoch"
train control "$work/models/base_whole" "$work/epoch"
train vision_only "$work/models/base_whole" "$work/epoch"

# What comes with the package.
merge dynamic embedded --dtype bfloat16
for model in base_whole dynamic control; do
  dynllava eval demo --model "$work/models/$model" --rows "$work/rows"
done
