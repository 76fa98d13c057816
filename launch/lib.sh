# shellcheck shell=bash
# What the launchers share: their words, the rule by which a run is started again, and --dry-run. Sourced, not run.
#
# Every launcher takes --dry-run, which prints the exact commands and runs none, and the options of `dynllava train`,
# which it hands on. From the environment:
#   MAX_RESTARTS  how often a run is started again at most, a whole number, over all reasons (20)
#   PAUSE         whole seconds before it is (30)

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then # such as a Mac's own, which cannot read what follows
  echo "dynllava: error: ${0##*/} needs bash 4.4 or later, not $BASH_VERSION; a Mac gets it by brew install bash" >&2
  exit 2
fi

MAX_RESTARTS=${MAX_RESTARTS:-20}
PAUSE=${PAUSE:-30}
UNFINISHED=75 # `dynllava train` was told to stop and has saved, or lost another process
NO_SLICE=69   # tpu_vm.sh has none to run on
AGAIN="again after status $NO_SLICE, $UNFINISHED, 125 or above 127 (but 130), at most $MAX_RESTARTS times"
dry_run=
options=()

say() { echo "dynllava: $*" >&2; }

# whole NAME ...: these variables are whole numbers. Bash reads 08 and 1m as errors, and only at the first restart: it
# would come without a pause, or without an end
whole() {
  local name
  for name; do
    [[ ${!name} =~ ^(0|[1-9][0-9]{0,8})$ ]] || { say "error: $name=${!name} is no whole number, such as 20" && exit 2; }
  done
}

# words "$@": puts --dry-run into $dry_run and the rest into "${options[@]}"; refuses what may not be said twice
words() {
  local word
  whole MAX_RESTARTS PAUSE
  for word; do
    if [[ $word == --rest* ]] && ((MAX_RESTARTS > 0)); then
      say "error: with ${word%%=*} every restart would go back to that step and lose what came after it; set" \
        "MAX_RESTARTS=0, and leave it out as soon as the run has saved a checkpoint"
      exit 2
    fi
    if [[ $word == --dry-run ]]; then dry_run=1; else options+=("$word"); fi
  done
}

# need NAME ...: these variables have to be set
need() {
  local name
  for name; do
    [[ -n ${!name:-} ]] || { say "error: $name is not set; ${0##*/} says at its top what it is" && exit 2; }
  done
}

# run COMMAND ...: runs it, or prints it
run() {
  if [[ $dry_run ]]; then
    echo "${*@Q}"
  else
    "$@"
  fi
}

# again STATUS RESTARTS: whether a run that left with STATUS after so many restarts is started once more; says why.
# 0 is done, 1 a check that failed, 2 bad input: the next try would end like that too. From 128 on a signal ended a
# process: its host was lost, was out of memory, or was taken away before the run could catch a signal. 125 is
# Docker's: a new host, whose daemon or registry may answer a minute later.
again() {
  local status=$1 restarts=$2 why
  case $status in
    0) return 1 ;;
    "$UNFINISHED") why="not finished" ;;
    130) say "interrupted" && return 1 ;;
    255) why="a host does not answer" ;;
    "$NO_SLICE") why="no slice to run on" ;;
    125) why="Docker could not start the container" ;;
    *) if ((status < 128)); then say "status $status: not started again" && return 1; fi
      why="lost a process by signal $((status - 128))" ;;
  esac
  if ((restarts >= MAX_RESTARTS)); then
    say "$why, but it was started again $restarts times already (MAX_RESTARTS); the same command goes on" \
      "from the last checkpoint"
    return 1
  fi
  say "$why: starting again ($((restarts + 1)) of at most $MAX_RESTARTS)"
}

# supervise COMMAND ...: runs it, again and again by the rule above, and returns its last status. SIGUSR1 is passed on;
# SIGTERM and SIGINT are too, as SIGTERM, and end it after this time.
supervise() {
  if [[ $dry_run ]]; then
    echo "${*@Q}  # $AGAIN"
    return
  fi
  local child=0 status restarts=0 left ended=
  trap 'ended=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
  trap 'kill -USR1 "$child" 2>/dev/null || true' USR1
  while :; do
    "$@" &
    child=$!
    if [[ $ended ]]; then kill -TERM "$child"; fi # a moment before it began
    while wait "$child" || true; kill -0 "$child" 2>/dev/null; do :; done # a trap cuts `wait` short
    wait "$child" && status=0 || status=$?
    if [[ $ended ]] || ! again "$status" "$restarts"; then return "$status"; fi
    restarts=$((restarts + 1))
    for ((left = PAUSE; left > 0; left--)); do
      sleep 1 || true # no longer, because a trap waits for its end
      if [[ $ended ]]; then return "$status"; fi
    done
  done
}
