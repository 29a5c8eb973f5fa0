#!/usr/bin/env bash
# Zero-shot evaluation on all GPUs of a node: sbatch slurm/evaluate.sh RUN_DIR=runs/mine [arguments of growclip evaluate]
#
# MODEL names a checkpoint or a CLIP in place of the run. Results are stored per set: an interrupted job that is submitted
# again evaluates only the missing sets.
#SBATCH --job-name=growclip-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -uo pipefail

SCRIPT=slurm/evaluate.sh
VARIABLES="RUN_DIR MODEL DEVICE RANKS_PER_NODE DRY_RUN PYTHON"

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "$SCRIPT: error: this is a job: submit it with sbatch $SCRIPT" >&2
  exit 2
fi
common=${GROWCLIP_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/common.sh
if [[ ! -f $common ]]; then
  echo "$SCRIPT: error: there is no $common: submit from the project's folder, or set GROWCLIP_HOME to it" >&2
  exit 2
fi
# shellcheck source=slurm/common.sh
source "$common"

read_arguments "$@"
[[ -n ${RUN_DIR:-}${MODEL:-} ]] || fail "there is nothing to evaluate: set RUN_DIR to a run, or MODEL to a checkpoint"
MODEL=${MODEL:-$RUN_DIR}
DEVICE=${DEVICE:-gpu}
enter_project
[[ -e $MODEL ]] || fail "there is no $MODEL to evaluate"
plan_ranks
set_environment
if [[ -n ${RUN_DIR:-} ]]; then
  open_run_dir
  print_to "$RUN_DIR/slurm/evaluate-$SLURM_JOB_ID.log"
fi

run_ranks "${RUN_PYTHON[@]}" -m growclip_ds evaluate "$MODEL" --device "${DEVICE/gpu/cuda}" "${REST[@]}"
code=$?
if ((code != 0)); then
  preempted && requeue "evaluation of $MODEL was preempted"
  tell "evaluation of $MODEL failed (exit code $code)"
fi
exit "$code"
