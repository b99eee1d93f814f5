#!/usr/bin/env bash
# N processes on this machine, to try what many hosts do:
#
#   launch/local.sh 2 --config=configs/smollm2_ntk.py:tiny --workdir=runs/tiny2
#
# Everything behind N goes to skipalign_jax.train. Ctrl-C, or SIGTERM to this script or
# to one of the processes, makes all of them save the same step and leave; the same
# command goes on from there, with this N or another.
#
# Environment: PORT and PYTHON; DEVICES, the virtual devices of a process (4). With
# JAX_PLATFORMS=cuda process i takes GPU i instead.
set -euo pipefail
set -m # a process group for each, so that Ctrl-C comes to this script only

count=${1:?usage: launch/local.sh N --config=FILE --workdir=DIR ...}
shift
address=127.0.0.1:${PORT:-9311}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
if [[ $JAX_PLATFORMS == cpu ]]; then
  # --xla_force_host_platform_device_count: one CPU poses as so many devices.
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-4}"
fi

# Each process tells its status through a pipe, in the order in which they end; bash
# forgets that of a job which is killed while another one is started.
ends=$(mktemp -u)
mkfifo "$ends"
exec 3<>"$ends"
rm "$ends"

groups=()
for ((index = 0; index < count; index++)); do
  if [[ $JAX_PLATFORMS != cpu ]]; then export JAX_LOCAL_DEVICE_IDS=$index; fi
  (
    trap : INT TERM # for the process, which answers them; this shell tells its status
    ended=0
    "${PYTHON:-python}" -m skipalign_jax.train "$@" \
      --distributed="$address,$count,$index" 3>&- || ended=$?
    echo "$ended" >&3
  ) &
  groups+=("-$!")
done
trap 'kill -TERM -- "${groups[@]}" 2>/dev/null || true' INT TERM

# Ends with the status of the first process that failed: the others follow it.
status=0
for ((left = count; left; left--)); do
  until read -r -u 3 ended; do :; done # again, if a signal interrupted it
  if ((status == 0)); then status=$ended; fi
done
exit "$status"
