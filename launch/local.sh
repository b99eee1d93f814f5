#!/usr/bin/env bash
# N processes on this machine, to try a run on many hosts:
#
#   launch/local.sh 2 --config=configs/smollm2_ntk.py:tiny --workdir=runs/tiny2
#
# Everything after N goes to skipalign_jax.train. Ctrl-C, or SIGTERM to this script or
# to one of the processes, makes all of them save the same step and end; the same
# command resumes from there, with this N or another.
#
# Needs bash 5.1. Environment: PORT (a free one by default) and PYTHON; DEVICES, the virtual devices of a process
# (4). With JAX_PLATFORMS=cuda process i takes GPU i instead.
set -euo pipefail
set -m # a process group for each, so that Ctrl-C comes to this script only

count=${1:?usage: launch/local.sh N --config=FILE --workdir=DIR ...}
shift
# A second run on the port of a first one would end both.
is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
if [[ ! ${PORT:-} ]]; then
  until PORT=$((20000 + RANDOM % 12000)) && is_free "$PORT"; do :; done
elif ! is_free "$PORT"; then
  echo "error: PORT=$PORT is in use; give another one, or leave PORT out" >&2
  exit 2
fi
address=127.0.0.1:$PORT
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
if [[ $JAX_PLATFORMS == cpu ]]; then
  # --xla_force_host_platform_device_count: one CPU poses as so many devices.
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-4}"
fi

declare -A running=()
for ((index = 0; index < count; index++)); do
  if [[ $JAX_PLATFORMS != cpu ]]; then export JAX_LOCAL_DEVICE_IDS=$index; fi
  "${PYTHON:-python}" -m skipalign_jax.train "$@" \
    --distributed="$address,$count,$index" &
  running[$!]=$index
done
trap 'kill -TERM "${!running[@]}" 2>/dev/null || true' INT TERM

# Ends with the status of the first process that failed: the others follow it.
status=0
while ((${#running[@]})); do
  ended=0
  wait -n -p pid "${!running[@]}" 2>/dev/null || ended=$?
  if [[ ! ${pid:-} ]]; then # a signal came, or bash took note of an end before `wait`
    for one in "${!running[@]}"; do
      if ! kill -0 "$one" 2>/dev/null; then pid=$one; fi
    done
    if [[ ! ${pid:-} ]]; then continue; fi
    ended=0
    wait "$pid" || ended=$?
  fi
  unset "running[$pid]"
  if ((status == 0)); then status=$ended; fi
done
exit "$status"
