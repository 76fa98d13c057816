#!/usr/bin/env bash
# TPU VMs without a cluster: makes the slice if it is not there, runs a container on each of its hosts, and watches.
#
#     launch/tpu_vm.sh --config=configs/dynamic_llava_7b.py --workdir=gs://BUCKET/RUN …
#
# Takes the options of `dynllava train`, and --dry-run. Runs wherever gcloud does; leave it in a tmux. From the
# environment, the first four required:
#   PROJECT, ZONE  where
#   TPU_TYPE       such as v5litepod-64
#   IMAGE          made of launch/Dockerfile.tpu, pushed to a registry that the TPU's service account reads
#   RUNTIME        system of the hosts (v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e)
#   NAME           of the slice (dynllava)
#   SPOT           1: a cheaper slice that may be taken away
#   MAX_RESTARTS, PAUSE  see lib.sh; COMPILE_CACHE: see process.sh
#
# Restarts: on status 75, and when a host is lost or does not answer; a slice that was taken away is asked for again.
# A container that is still there from before saves and stops first. The slice stays when the run is finished:
#     gcloud compute tpus queued-resources delete NAME --force --project=PROJECT --zone=ZONE
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
words "$@"
need PROJECT ZONE TPU_TYPE IMAGE
name=${NAME:-dynllava}
case $TPU_TYPE in
  v5lite*) runtime=v2-alpha-tpuv5-lite ;;
  v5p*) runtime=v2-alpha-tpuv5 ;;
  v6e*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac
where=("--project=$PROJECT" "--zone=$ZONE")
queued=(gcloud compute tpus queued-resources)
create=("${queued[@]}" create "$name" "--node-id=$name" "${where[@]}" "--accelerator-type=$TPU_TYPE"
  "--runtime-version=${RUNTIME:-$runtime}" ${SPOT:+--spot})
delete=("${queued[@]}" delete "$name" "${where[@]}" --force --quiet)
describe=("${queued[@]}" describe "$name" "${where[@]}" "--format=value(state.state)")
container=(sudo docker run --rm --name=dynllava --privileged --net=host
  ${COMPILE_CACHE:+"--env=COMPILE_CACHE=$COMPILE_CACHE"} "$IMAGE" "${options[@]}" --distributed)
# Each host says its own status: that of ssh to many hosts is not theirs.
remote="echo dynllava-begun
{ sudo docker stop --time=300 dynllava; while sudo docker inspect dynllava; do sleep 1; done; } >/dev/null 2>&1
${container[*]@Q}
echo dynllava-status \$?"
ssh=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$remote")

# slice: waits until it is there
slice() {
  local state
  while :; do
    state=$("${describe[@]}" 2>/dev/null || true)
    case $state in
      ACTIVE) return ;;
      "") run "${create[@]}" ;;
      SUSPENDED | FAILED) run "${delete[@]}" ;;
      *) say "the slice is $state" ;;
    esac
    sleep "$PAUSE"
  done
}

# attempt: one try on all hosts; its status is the highest of theirs, or 255 when one that began has not said any
attempt() {
  local told watch begun ended
  slice
  told=$(mktemp)
  "${ssh[@]}" | tee "$told" &
  watch=$!
  trap 'kill "$watch" 2>/dev/null; exit 143' TERM
  wait "$watch" || true
  begun=$(grep -c dynllava-begun "$told" || true)
  mapfile -t ended < <(sed -n 's/^.*dynllava-status //p' "$told" | sort -n)
  rm "$told"
  if ((begun == 0 || ${#ended[@]} < begun)); then return 255; fi
  return "${ended[-1]}"
}

if [[ $dry_run ]]; then
  run "${create[@]}"
  run "${describe[@]}"
  supervise "${ssh[@]}"
else
  supervise attempt
fi
