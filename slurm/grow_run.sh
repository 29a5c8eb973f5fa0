#!/usr/bin/env bash
# The whole run: slurm/grow_run.sh [NAME=value ...] [section.key=value ...] [options of sbatch ...]
# (options with =, as in --nodes=4)
#
# Submits every unfinished growth step that has not been submitted, each to start after the one before has succeeded, and
# prints their job ids. With ONE_AT_A_TIME=1 only the next one. Variables: those of slurm/grow_step.sh.
set -uo pipefail

SCRIPT=slurm/grow_run.sh
VARIABLES="CONFIG DS_CONFIG RUN_DIR DEVICE RANKS_PER_NODE STAGE STAGE_DIR MAX_RESTARTS DRY_RUN PYTHON ONE_AT_A_TIME"
GROWCLIP_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=slurm/common.sh
source "$GROWCLIP_HOME/slurm/common.sh"

leave_allocation
read_arguments "$@"
options=() overrides=()
for word in "${REST[@]}"; do
  case $word in
    --job-name* | -J* | --array* | -a*) fail "a growth step is one job, known by its name: leave out $word" ;;
    -*) options+=("$word") ;;
    *) overrides+=("$word") ;;
  esac
done
command -v sbatch > /dev/null || fail "there is no sbatch here: run this where jobs are submitted"
read_run_variables
enter_project
require_run_files
open_run_dir

exec 9> "$RUN_DIR/slurm/.lock" || fail "$RUN_DIR/slurm/.lock cannot be written"
said=$(flock --nonblock --conflict-exit-code=75 9 2>&1)
case $? in
  0) ;;
  75) fail "another $SCRIPT is submitting jobs for $RUN_DIR; wait for it to end" ;;
  *) fail "$RUN_DIR/slurm/.lock cannot be locked (${said##*: }): mount the file system with locks (Lustre: -o flock), or set RUN_DIR to a folder on another" ;;
esac
steps=$(unfinished_steps "${overrides[@]}") || exit 2
[[ -n $steps ]] || { echo "all growth steps of $RUN_DIR are finished"; exit 0; }

settings=()
for variable in $VARIABLES; do
  [[ $variable != ONE_AT_A_TIME && -n ${!variable:-} ]] && settings+=("$variable=${!variable}")
done
[[ ${DEVICE:-gpu} == cpu ]] && options=(--gpus-per-node=0 --ntasks-per-node="${RANKS_PER_NODE:-1}" "${options[@]}")

before=
for step in $steps; do
  name=$(job_name "$step")
  # Jobs are recognised by name, so that no step is submitted twice.
  job=$(job_of_step "$step") || fail "squeue failed; try again later"
  if [[ -n $job ]]; then
    [[ $(squeue --noheader --jobs="$job" --format=%T) != COMPLETING ]] ||
      fail "job $job, of growth step $step, is still ending; run this again when squeue shows it as pending, or no longer"
    echo "growth step $step: job $job, submitted before"
  else
    dependency=()
    [[ -n $before ]] && dependency=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
    # After the user's options: a --dependency among them is for the first step, on which the others depend.
    job=$(sbatch --parsable --output="${RUN_DIR//%/%%}/slurm/%x-%j.log" "${options[@]}" --job-name="$name" \
      "${dependency[@]}" slurm/grow_step.sh "${settings[@]}" STEP="$step" "${overrides[@]}") ||
      fail "growth step $step was not submitted; the steps that were are listed above"
    [[ -n $job ]] || fail "growth step $step was not submitted, as sbatch gave it no number: leave out --test-only"
    job=${job%%;*}   # the name of the cluster may follow
    echo "growth step $step: job $job${before:+, after job $before}"
  fi
  before=$job
  [[ ${ONE_AT_A_TIME:-0} == 1 ]] && break
done
exit 0
