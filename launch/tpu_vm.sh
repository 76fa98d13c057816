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
# Restarts: on status 75, when a host is lost or does not answer, and when there is no slice to run on: gcloud refuses
# it, or its request ended as FAILED or was SUSPENDED (taken away). A try asks for a slice at most once, so that
# MAX_RESTARTS bounds the requests too, PAUSE apart; then this script gives up, with the last status (69: no slice). In
# the queue it waits without an end; gcloud's `delete`, below, ends that. A container that is still there from before
# saves and stops first.
#
# Ctrl-C and SIGTERM end the watching, not the run: it goes on on its hosts, and the same command takes it up again.
# To save and stop it after that, and to give the slice back, which stays (and costs) when the run is finished too:
#     gcloud compute tpus tpu-vm ssh NAME --project=PROJECT --zone=ZONE --worker=all \
#         --command='sudo docker stop -t 300 dynllava'
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
spot=()
if [[ ${SPOT:-0} != 0 ]]; then spot=(--spot); fi
queued=(gcloud compute tpus queued-resources)
create=("${queued[@]}" create "$name" "--node-id=$name" "${where[@]}" "--accelerator-type=$TPU_TYPE"
  "--runtime-version=${RUNTIME:-$runtime}" "${spot[@]}")
delete=("${queued[@]}" delete "$name" "${where[@]}" --force --quiet)
describe=("${queued[@]}" describe "$name" "${where[@]}" "--format=value(state.state)")
# --ipc=host: the processes that read data hand batches on in shared memory, of which Docker alone gives 64 MB.
container=(sudo docker run --rm --name=dynllava --privileged --net=host --ipc=host
  ${COMPILE_CACHE:+"--env=COMPILE_CACHE=$COMPILE_CACHE"} "$IMAGE" "${options[@]}" --distributed)
# A slice that is asked for again has new hosts, which know no registry yet.
registry=${IMAGE%%/*} login=""
if [[ $registry == *.pkg.dev || $registry == gcr.io || $registry == *.gcr.io ]]; then
  login="gcloud auth print-access-token | sudo docker login -u oauth2accesstoken --password-stdin $registry >/dev/null
"
fi
# Each host says its own status: that of ssh to many hosts is not theirs.
remote="echo dynllava-begun
{ sudo docker stop -t 300 dynllava; while sudo docker container inspect dynllava; do sleep 1; done; } >/dev/null 2>&1
$login${container[*]@Q}
echo dynllava-status \$?"
ssh=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --quiet "--command=$remote")
LOOKS=10 # in a row, at which gcloud does not know the slice that it was asked for, or does not answer

# slice: waits until it is there. Asks for it once at most; NO_SLICE when that was in vain.
slice() {
  local state before=none asked="" unseen=0
  while :; do
    state=$("${describe[@]}" 2>/dev/null || true)
    if [[ $state != "$before" ]]; then say "the slice is ${state:-not there}"; fi
    before=$state
    case $state in
      ACTIVE) return ;;
      "" | FAILED | SUSPENDED)
        if [[ ! $asked ]]; then
          asked=1
          if [[ $state ]]; then "${delete[@]}" || return "$NO_SLICE"; fi
          "${create[@]}" || return "$NO_SLICE"
        elif [[ $state ]] || ((++unseen == LOOKS)); then
          return "$NO_SLICE"
        fi
        ;;
      *) unseen=0 ;;
    esac
    sleep "$PAUSE"
  done
}

# attempt: one try on all hosts; its status is the highest of theirs, or 255 when one that began has not said any
attempt() {
  local told begun ended
  slice || return
  told=$(mktemp)
  "${ssh[@]}" | tee "$told" &
  # shellcheck disable=SC2046 # one of the two is `ssh`, and each a number
  trap 'kill $(jobs -p) $!; rm -f "$told"; exit 143' TERM
  wait $! || true
  begun=$(grep -c dynllava-begun "$told" || true)
  mapfile -t ended < <(sed -n 's/^.*dynllava-status //p' "$told" | sort -n)
  rm "$told"
  if ((begun == 0 || ${#ended[@]} < begun)); then return 255; fi
  return "${ended[-1]}"
}

if [[ $dry_run ]]; then
  run "${describe[@]}"
  echo "${delete[*]@Q}  # if it is FAILED or SUSPENDED, and then"
  echo "${create[*]@Q}  # if it is not there, at most $((MAX_RESTARTS + 1)) times"
  supervise "${ssh[@]}"
else
  supervise attempt
fi
