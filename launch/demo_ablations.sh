#!/usr/bin/env bash
# The trainings that docs/evidence.md compares besides the recipe's own: the same epoch from the same base, one thing
# changed in each.
#
#     launch/demo_ablations.sh WORKDIR [NAME ...]
#
# WORKDIR is the one of launch/demo_recipe.sh, which must have come as far as the base. Without names all are made, in
# the order below; run again, it goes on where it was stopped. Variables: launch/demo_lib.sh, and
#
# EPOCH   folder of the samples, in WORKDIR (epoch). A smaller one makes shorter trainings; `reference`, where nothing is
#         changed, is then what the ablations of image tokens and losses are compared with
set -euo pipefail
# shellcheck source=launch/demo_lib.sh
source "$(dirname "$0")/demo_lib.sh"
shift

# Name, config, what is changed.
image=--config.sparsity.image_predictor
trainings="
reference         dynamic
zeroed            dynamic     --config.loss.zero_dropped=True
layer1            dynamic     --config.sparsity.sparse_layer=1
layer4            dynamic     --config.sparsity.sparse_layer=4
len0              dynamic     --config.loss.min_answer_tokens=0
len100            dynamic     --config.loss.min_answer_tokens=100
lambda10          dynamic     --config.loss.mask_weight=10.0
lambda1000        dynamic     --config.loss.mask_weight=1000.0
tau_fixed         dynamic     --config.gumbel.end=1.0
instruct          dynamic     --config.sparsity.instruct_selector=learned --config.loss.min_instruction_tokens=0
predictor_linear  dynamic     $image.class=LinearPredictor
predictor_mlp     dynamic     $image.class=MlpPredictor $image.width=128
predictor_1block  dynamic     $image.depth=1
dynamic_ot20      dynamic     --config.sparsity.output_keep_rate=0.2
dynamic_ot80      dynamic     --config.sparsity.output_keep_rate=0.8
vision_only_r5    vision_only --config.sparsity.image_keep_rate=0.05
vision_only_r10   vision_only --config.sparsity.image_keep_rate=0.1
vision_only_r35   vision_only --config.sparsity.image_keep_rate=0.35
vision_only_r50   vision_only --config.sparsity.image_keep_rate=0.5
vision_only_r80   vision_only --config.sparsity.image_keep_rate=0.8
"

for name in "$@"; do
  if [[ $trainings != *$'\n'"$name "* ]]; then
    echo "demo_ablations.sh: there is no ablation $name; the names stand in its list of trainings." >&2
    exit 2
  fi
done
while read -r name config changes; do
  [[ -n $name ]] || continue
  [[ $# -eq 0 || " $* " == *" $name "* ]] || continue
  read -ra changed <<<"$changes"
  train "$name" "$config" "$work/models/base_whole" "$work/${EPOCH:-epoch}" ${changed[@]+"${changed[@]}"} </dev/null
done <<<"$trainings"
