#!/usr/bin/env bash
# One process of a run: sets XLA's flags and the compile cache, then becomes `dynllava train`. Every launcher starts it.
#
#     launch/process.sh --config=configs/dynamic_llava_7b.py --workdir=RUN …
#
#   COMPILE_CACHE  folder of compiled programs, which a restart finds again (WORKDIR/programs; gs:// will do)
#
# `dynllava` has to be on the PATH.
set -euo pipefail
# shellcheck source=launch/xla_flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/xla_flags.sh"
before=
for word; do
  if [[ $word == --workdir=* ]]; then workdir=${word#*=}; fi
  if [[ $before == --workdir ]]; then workdir=$word; fi
  before=$word
done
# Bash leaves the ~ of --workdir=~/RUN alone, `dynllava train` does not.
if [[ ${workdir:-} =~ ^~([A-Za-z_][A-Za-z0-9_.-]*)?(/|$) ]]; then
  home=
  eval "home=${workdir%%/*}" # ~ or ~NAME, as just seen, so that nothing else is run
  workdir=$home${workdir#"${workdir%%/*}"}
fi
cache=${COMPILE_CACHE:-${workdir:+${workdir%/}/programs}}
if [[ $cache ]]; then export JAX_COMPILATION_CACHE_DIR=$cache; fi
exec dynllava train "$@"
