#!/usr/bin/env bash
# A slice of Cloud TPU VMs: the same command on all of its hosts, with gcloud.
#
#   TPU=my-v5p-16 ZONE=us-east5-a BUCKET=my-bucket launch/tpu_vm.sh
#
# Every host has the repository in ~/skipalign_jax, with '.[tpu,hub]' installed in its
# .venv or for its python. The workdir has to be one folder for all hosts: here a bucket mounted
# with gcsfuse (or Filestore). Without its limit gcsfuse renames no folders, and a
# checkpoint gets its name when it is complete.
# JAX finds the other hosts by itself. Before its maintenance a host sends its
# process SIGTERM; when it is shut down or preempted, systemd sends it. All hosts save
# the same step and end with 143. Create the slice again, if it is gone, and run this
# again: it resumes.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}" "${BUCKET:?where the workdir lives}"

# libtpu reads its flags here, not in XLA_FLAGS, where they would be unknown.
flags=(
  # Splits collectives into a start and an end, with products in between.
  --xla_tpu_enable_async_collective_fusion=true
  # Does so for all-gathers, the fetching of weights that fsdp needs.
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  # Lets one collective pass several products.
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  # Overlaps computing with what is sent meanwhile.
  --xla_tpu_overlap_compute_collective_tc=true
  # Makes all-gathers asynchronous before they are fused.
  --xla_enable_async_all_gather=true
)

gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
set -euo pipefail
mkdir -p ~/runs
mountpoint -q ~/runs || gcsfuse --implicit-dirs --rename-dir-limit=100000 '$BUCKET' ~/runs
cd ~/skipalign_jax
export PATH=~/skipalign_jax/.venv/bin:\$PATH
export LIBTPU_INIT_ARGS='${flags[*]}'
export JAX_COMPILATION_CACHE_DIR=~/runs/.xla_cache
# The end of a session sends SIGTERM, then SIGHUP, to all processes of it. Neither may
# end training before it has saved, nor be repeated: a second SIGTERM ends it at once.
trap '' HUP
python -m skipalign_jax.train --config=configs/llama2_ntk.py --workdir=\$HOME/runs/llama2_ntk --config.checkpoint.every=100 &
training=\$!
asked=0
trap 'asked=1' TERM
# The metadata server says NONE until a maintenance that this host will not survive.
while kill -0 \$training 2>/dev/null; do
  event=\$(curl -s -m 5 -H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event || true)
  if [[ \$event == *MAINTENANCE* && \$asked == 0 ]]; then
    asked=1
    kill -TERM \$training
  fi
  sleep 10 & wait \$! || true
done
wait \$training
"
