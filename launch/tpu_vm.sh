#!/usr/bin/env bash
# A slice of Cloud TPU VMs: the same command on all of its hosts, with gcloud.
#
#   TPU=my-v5p-16 ZONE=us-east5-a BUCKET=my-bucket launch/tpu_vm.sh
#
# Every host has the repository with '.[tpu]' installed, in ~/skipalign_jax. The workdir
# has to be one folder for all hosts: here a bucket mounted with gcsfuse (or Filestore).
# JAX finds the other hosts by itself. After a preemption, make the slice again and run
# this again: it goes on from the last checkpoint.
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
mountpoint -q ~/runs || gcsfuse --implicit-dirs '$BUCKET' ~/runs
cd ~/skipalign_jax
export LIBTPU_INIT_ARGS='${flags[*]}'
export JAX_COMPILATION_CACHE_DIR=~/runs/.xla_cache
python -m skipalign_jax.train --config=configs/llama2_ntk.py --workdir=\$HOME/runs/llama2_ntk --config.checkpoint.every=100
"
