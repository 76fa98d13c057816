# shellcheck shell=bash
# Flags with which XLA overlaps what devices send each other with what they compute. Sourced by process.sh; a flag that
# the installed XLA does not know ends the program at its start, so that none here is a dead letter. What was set in
# XLA_FLAGS or LIBTPU_INIT_ARGS before comes after these and wins.

gpu=(
  # Order operations so that collectives run beside arithmetic: with fsdp the weights of the next layer are gathered
  # while this one computes. The default order is the one that saves memory.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # The layers are a loop, and the scheduler does not look beyond one round of it: these move a gather into the round
  # before, and a scatter of gradients into the one after.
  --xla_gpu_enable_pipelined_all_gather=true
  --xla_gpu_enable_pipelined_reduce_scatter=true
  --xla_gpu_enable_pipelined_all_reduce=true
  # Join small collectives up to these sizes: fewer starts, larger messages. The weights of one layer of the 7B model
  # are 400 MB in bfloat16; beyond that, joining only makes the next layer wait.
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
)
tpu=(
  # Run collectives beside matrix products, fused with them, gathers of weights included, and over several steps.
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  # Let the TensorCore compute while it has a collective under way.
  --xla_tpu_overlap_compute_collective_tc=true
  # Gathers are started and awaited as two operations, which is what there is to overlap.
  --xla_enable_async_all_gather=true
)
export XLA_FLAGS="${gpu[*]} ${XLA_FLAGS:-}"
export LIBTPU_INIT_ARGS="${tpu[*]} ${LIBTPU_INIT_ARGS:-}"
