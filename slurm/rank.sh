#!/usr/bin/env bash
# One rank: sets torch.distributed's variables for it, and executes the command.
set -euo pipefail

export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$RANKS_PER_NODE
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export GROWCLIP_CPUS_PER_RANK=$SLURM_CPUS_PER_TASK

if [[ ${DRY_RUN:-0} == 1 ]]; then
  printf 'rank: node=%s RANK=%s LOCAL_RANK=%s WORLD_SIZE=%s LOCAL_WORLD_SIZE=%s MASTER_ADDR=%s MASTER_PORT=%s' \
    "$SLURMD_NODENAME" "$RANK" "$LOCAL_RANK" "$WORLD_SIZE" "$LOCAL_WORLD_SIZE" "$MASTER_ADDR" "$MASTER_PORT"
  printf ' CUDA_VISIBLE_DEVICES=%s GROWCLIP_CPUS_PER_RANK=%s OMP_NUM_THREADS=%s DS_ACCELERATOR=%s HF_HUB_OFFLINE=%s command:' \
    "${CUDA_VISIBLE_DEVICES:-}" "${GROWCLIP_CPUS_PER_RANK:-}" "$OMP_NUM_THREADS" "$DS_ACCELERATOR" "$HF_HUB_OFFLINE"
  printf ' %q' "$@"
  printf '\n'
  exit
fi

# Ignored until Python handles it: an earlier request to stop would kill the rank. Requests are repeated.
trap '' USR1
exec "$@"
