#!/usr/bin/env bash
# TensorBoard of a run as a job: slurm/tensorboard.sh RUN_DIR=runs/mine [options of sbatch ...]
#
# Submits itself, waits until it runs, and prints the command that forwards it to your own machine. It listens on the
# node's loopback interface only, as it has no authentication. End it with scancel.
#SBATCH --job-name=growclip-tensorboard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=08:00:00
#SBATCH --output=slurm-%j.out
set -uo pipefail

SCRIPT=slurm/tensorboard.sh
VARIABLES="RUN_DIR PYTHON"
WAIT=300   # seconds to wait for the job to start

# Slurm runs a copy of the script under another name. A job id alone proves nothing: another job may have started this.
is_job=0
[[ -n ${SLURM_JOB_ID:-} && ${BASH_SOURCE[0]##*/} != tensorboard.sh ]] && is_job=1
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
((is_job)) && home=$SLURM_SUBMIT_DIR
GROWCLIP_HOME=${GROWCLIP_HOME:-$home}
if [[ ! -f $GROWCLIP_HOME/slurm/common.sh ]]; then
  echo "$SCRIPT: error: there is no $GROWCLIP_HOME/slurm/common.sh: run it from the project's folder, or set GROWCLIP_HOME to it" >&2
  exit 2
fi
# shellcheck source=slurm/common.sh
source "$GROWCLIP_HOME/slurm/common.sh"

((is_job)) || leave_allocation
read_arguments "$@"
[[ -n ${RUN_DIR:-} ]] || fail "RUN_DIR is not set: name the run's folder, or that of several runs"
enter_project
[[ -d $RUN_DIR ]] || fail "there is no folder $RUN_DIR"

if ((!is_job)); then
  command -v sbatch > /dev/null || fail "there is no sbatch here: run this where jobs are submitted"
  open_run_dir
  job=$(sbatch --parsable --output="${RUN_DIR//%/%%}/slurm/tensorboard-%j.log" "${REST[@]}" "$SCRIPT" "RUN_DIR=$RUN_DIR" \
    ${PYTHON:+"PYTHON=$PYTHON"}) || exit 2
  job=${job%%;*}
  log=$RUN_DIR/slurm/tensorboard-$job.log
  end=$((SECONDS + WAIT))
  until grep -qs 'ssh -N' "$log"; do
    [[ -n $(squeue --noheader --jobs="$job" --format=%A 2> /dev/null) ]] || fail "job $job has ended: $(tail -n 1 "$log" 2> /dev/null)"
    ((SECONDS < end)) || fail "job $job is not running yet; it will print the command to $log"
    sleep 1
  done
  cat "$log"
  exit
fi

port=$((30000 + SLURM_JOB_ID % 2000))
echo "job $SLURM_JOB_ID shows $RUN_DIR until $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e); on your own machine:"
echo "  ssh -N -L 6006:127.0.0.1:$port -J $(id -un)@$SLURM_SUBMIT_HOST $(id -un)@$SLURMD_NODENAME"
echo "  then open http://127.0.0.1:6006; to end it: scancel $SLURM_JOB_ID"
exec srun --export=ALL --mpi=none --input=none --ntasks=1 "${RUN_PYTHON[@]}" -m tensorboard.main --logdir "$RUN_DIR" --host 127.0.0.1 \
  --port "$port"
