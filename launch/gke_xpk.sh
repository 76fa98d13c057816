#!/usr/bin/env bash
# A TPU slice on GKE, through xpk (pip install xpk), for a cluster that `xpk cluster create` has made.
#
#     launch/gke_xpk.sh --config=configs/dynamic_llava_7b.py --workdir=gs://BUCKET/RUN …
#
# Takes the options of `dynllava train`, and --dry-run. From the environment, the first five required:
#   PROJECT, ZONE  of the cluster
#   CLUSTER        its name
#   TPU_TYPE       such as v5litepod-64 or v5p-32
#   IMAGE          made of launch/Dockerfile.tpu, pushed to a registry that the cluster reads
#   WORKLOAD       name of the run in the cluster (dynllava)
#   GRACE          seconds between SIGTERM and the end of a pod: time to save, of which xpk may take ten (300)
#   MAX_RESTARTS   see lib.sh; COMPILE_CACHE: see process.sh
#
# This script only hands the run over: it ends as soon as the cluster has it. What starts it again, and gives up, is the
# JobSet that xpk makes (read in xpk 1.16.0). One failed pod fails the slice (backoffLimit: 0), and then
#   - status 75, which this script names, 42 and 127 to 255, which xpk does, and a pod that is gone with its host: the
#     JobSet starts all pods anew, at most failurePolicy.maxRestarts times, which is MAX_RESTARTS, over all reasons;
#   - any other status, such as 1 and 2: podFailurePolicy ends the JobSet at once.
# How often it did: kubectl get jobset WORKLOAD -o 'jsonpath={.status.restarts}'. PAUSE does not count here. Take the
# run back, or give way to a new one of the same name, with `xpk workload delete --workload WORKLOAD`.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
words "$@"
need PROJECT ZONE CLUSTER TPU_TYPE IMAGE
# `exec`, because xpk sends SIGTERM to the shell that it starts for this command.
inside=(exec env ${COMPILE_CACHE:+"COMPILE_CACHE=$COMPILE_CACHE"}
  /dynllava/launch/process.sh "${options[@]}" --distributed)
run xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" --workload="${WORKLOAD:-dynllava}" \
  --tpu-type="$TPU_TYPE" --num-slices=1 --docker-image="$IMAGE" \
  --max-restarts="$MAX_RESTARTS" --restart-on-exit-codes="$UNFINISHED" \
  --termination-grace-period-seconds="${GRACE:-300}" --command="${inside[*]@Q}"
