# shellcheck shell=bash
# What launch/demo_recipe.sh and launch/demo_ablations.sh share, sourced: the work folder is their first argument.
#
# BATCH          pictures of a step (16)
# TRAIN_OPTIONS  further options of every training, such as --config.attention=chunked, with which an epoch takes less
#                time on a CPU

if [[ ! ${1:-} ]]; then
  echo "${0##*/}: WORKDIR is missing; it says at its top how it is called." >&2
  exit 2
fi
if [[ $1 == -* ]]; then # a folder of that name, and hours of work in it, is what nobody means
  echo "${0##*/}: $1 is no WORKDIR; it says at its top how it is called." >&2
  exit 2
fi
if [[ $1 == /* ]]; then work=$1; else work=$PWD/$1; fi # it was named from where the caller stands
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# merge RUN NAME [OPTION ...]: the model of a run, made anew when the run has gone on since
merge() {
  local run=$work/$1 model=$work/models/$2
  shift 2
  [[ $run/checkpoints -nt $model ]] && rm -rf "$model"
  [[ -d $model ]] || dynllava convert merge "$run" "$model" "$@"
}

# train NAME CONFIG START_WEIGHTS DATA [OVERRIDE ...]
train() {
  local name=$1 config=$2 start=$3 from=$4 more
  shift 4
  # Before bash 4.4, such as a Mac's, an empty array counts as not set: hence ${NAME[@]+...}.
  read -ra more <<<"${TRAIN_OPTIONS:-}"
  dynllava train --config="configs/demo/$config.py" --workdir="$work/$name" --config.init.checkpoint="$start" \
    --config.data.source="$from/train.json" --config.data.images="$from" \
    --config.global_batch_size="${BATCH:-16}" ${more[@]+"${more[@]}"} "$@"
  merge "$name" "$name"
}
