#!/usr/bin/env bash
# One growth step: sbatch slurm/grow_step.sh [NAME=value ...] [section.key=value ...]
#
# Submit it from the project's folder. Options of sbatch (--nodes=4) override the requests below; account and partition
# may come from SBATCH_ACCOUNT and SBATCH_PARTITION. Variables, from the environment or as arguments: docs/cluster.md.
#SBATCH --job-name=growclip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -uo pipefail

SCRIPT=slurm/grow_step.sh
VARIABLES="CONFIG DS_CONFIG RUN_DIR STEP DEVICE RANKS_PER_NODE STAGE STAGE_DIR MAX_RESTARTS DRY_RUN PYTHON"
RESEND=5     # seconds between requests to stop: a rank that is starting up does not handle them yet
PROBE=60     # seconds within which a healthy node answers

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "$SCRIPT: error: this is a job: submit it with sbatch $SCRIPT" >&2
  exit 2
fi
# Asks all ranks to stop, repeatedly until they do. The ranks agree on the iteration after which all of them stop.
# A failed request is not fatal: Slurm may be busy.
# shellcheck disable=SC2329  # the trap calls it
stop_ranks() {
  [[ -n ${asker:-} ]] && return
  while kill -0 $$; do
    scancel --signal=USR1 "$SLURM_JOB_ID"
    sleep "$RESEND"
  done 2> /dev/null &
  asker=$!
}

stop_asking() {
  [[ -z ${asker:-} ]] || kill "$asker" 2> /dev/null
  asker=
}

begun=0 stopping=0 ended=0
# Sent by --signal before the time limit, or manually: scancel --batch --signal=USR1 JOB.
trap 'signalled=1 stopping=1; stop_ranks' USR1
# Slurm ends the job. The ranks get the signal too, so wait for them. Slurm does not requeue a job that is out of time.
trap 'signalled=1 ended=1; ((begun == 0)) || queue_again_if_out_of_time' TERM
trap stop_asking EXIT

common=${GROWCLIP_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/common.sh
if [[ ! -f $common ]]; then
  echo "$SCRIPT: error: there is no $common: submit from the project's folder, or set GROWCLIP_HOME to it" >&2
  exit 2
fi
# shellcheck source=slurm/common.sh
source "$common"

end_with_reason() {
  local code=$1
  shift
  tell "$* (exit code $code)"
  exit "$code"
}

# Prints the progress of the step: the number of finished phases, and the newest checkpoint of the others. More progress
# sorts later.
progress() {
  local phase checkpoint finished=0 newest=000000000
  for phase in "$RUN_DIR/step_$STEP"/*/; do
    if [[ -f ${phase}phase.json ]]; then
      ((finished += 1))
      continue
    fi
    for checkpoint in "${phase}checkpoints"/iteration_*; do
      [[ -d $checkpoint ]] && newest=${checkpoint##*_}
    done
  done
  echo "$finished $newest"
}

# Counts a restart in `idle`, unless the step has made progress beyond `reached`.
count_restart() {
  local now
  now=$(progress)
  if [[ $now > $reached ]]; then
    idle=0 reached=$now
  else
    ((idle += 1))
  fi
}

# Requeues the job and ends it, unless restarts make no progress: `queue_again WHY`.
queue_again() {
  stop_asking
  count_restart
  ((idle <= MAX_RESTARTS)) || end_with_reason "$STOPPED" "$1, and has made no progress in $((idle - 1)) restarts (MAX_RESTARTS=$MAX_RESTARTS); submit it again to resume"
  requeue "$1"
  end_with_reason "$STOPPED" "$1, but Slurm did not requeue it; submit it again to resume"
}

# Ranks may need longer to finish what they are doing than the notice that --signal gives.
queue_again_if_out_of_time() {
  [[ $(scontrol show job "$SLURM_JOB_ID" 2> /dev/null) != *" Reason=TimeLimit"* ]] ||
    queue_again "growth step $STEP is out of time, and its ranks did not stop before"
}

# Whether another node of the job does not answer. Slurm itself waits for minutes (SlurmdTimeout), while the ranks on the
# other nodes fail long before. If the probe fails even on this node, the answer is no.
lost_node() {
  ((SLURM_JOB_NUM_NODES > 1)) || return
  local ask=(timeout --kill-after=5 "$PROBE" "${SRUN[@]}" --gres=none --overlap --cpus-per-task=1 --ntasks-per-node=1)
  "${ask[@]}" --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" true 2> /dev/null &&
    ! "${ask[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" true
}

# Runs a command to its end, through any signals. Sets code.
run() {
  "$@" &
  local child=$!
  while true; do
    signalled=0
    wait "$child"
    code=$?
    ((signalled)) || return 0
  done
}

read_arguments "$@"
for word in "${REST[@]}"; do
  [[ $word != -* ]] || fail "options of sbatch go before the script: sbatch $word $SCRIPT"
done
MAX_RESTARTS=${MAX_RESTARTS:-20}
read_run_variables
enter_project
require_run_files
open_run_dir
plan_ranks
set_environment

# A restarted job continues with the growth step that it started with.
kept=$RUN_DIR/slurm/job_$SLURM_JOB_ID.step
[[ -z ${STEP:-} && -f $kept ]] && STEP=$(< "$kept")
if [[ -z ${STEP:-} ]]; then
  unfinished=$(unfinished_steps "${REST[@]}") || { tell "the growth steps of $RUN_DIR cannot be determined: see above"; exit 2; }
  STEP=${unfinished%%$'\n'*}
  if [[ -z $STEP ]]; then
    tell "all growth steps of $RUN_DIR are finished"
    exit 0
  fi
fi
[[ $MAX_RESTARTS =~ ^[0-9]+$ ]] || fail "MAX_RESTARTS must be a number, not $MAX_RESTARTS"
[[ $STEP =~ ^[1-9][0-9]*$ ]] || fail "STEP must be the number of a growth step, not $STEP"
echo "$STEP" > "$kept"
name=$(job_name "$STEP")
other=$(squeue --noheader --me --states=RUNNING --name="$name" --format=%A | grep -vx "$SLURM_JOB_ID" | head -n 1)
[[ -z $other ]] || fail "job $other is already running growth step $STEP of $RUN_DIR"
[[ $SLURM_JOB_NAME == "$name" ]] || scontrol update "JobId=$SLURM_JOB_ID" "JobName=$name"
log=$RUN_DIR/slurm/$name-$SLURM_JOB_ID.log
print_to "$log"
begin=$(wc -l < "$log")

# Restarts since the last progress of the step, and that progress.
counted=$RUN_DIR/slurm/job_$SLURM_JOB_ID.restarts
restarts=${SLURM_RESTART_COUNT:-0} idle=0 reached=
((restarts == 0)) || [[ ! -f $counted ]] || read -r idle reached < "$counted"
count_restart
echo "$idle $reached" > "$counted"
tell "growth step $STEP of $RUN_DIR: $((SLURM_JOB_NUM_NODES * RANKS_PER_NODE)) ranks on $SLURM_JOB_NODELIST, restart $restarts, $idle without progress, of at most $MAX_RESTARTS"
((idle <= MAX_RESTARTS)) || end_with_reason "$STOPPED" "growth step $STEP has made no progress in $idle restarts, more than MAX_RESTARTS=$MAX_RESTARTS; submit it again to resume"

finished() {
  [[ -f $RUN_DIR/step_$STEP/train/phase.json ]]
}

was_finished=0
finished && was_finished=1
command=("${RUN_PYTHON[@]}" train.py --deepspeed_config "$DS_CONFIG" --config "$CONFIG" --output-dir "$RUN_DIR"
  --growth-step "$STEP" "${REST[@]}")
# shellcheck disable=SC2034  # the trap reads it
begun=1
code=0
if [[ ${STAGE:-0} == 1 ]]; then
  STAGE_DIR=${STAGE_DIR:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/growclip-$(id -un)}
  run "${SRUN[@]}" --gres=none --kill-on-bad-exit=1 --nodes="$SLURM_JOB_NUM_NODES" \
    --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "${RUN_PYTHON[@]}" -m growclip_ds data stage --to "$STAGE_DIR" \
    --config "$CONFIG" --growth-step "$STEP" "${REST[@]}"
  command+=("data.staged=$STAGE_DIR")
fi
if ((code == 0 && stopping == 0)); then
  run run_ranks "${command[@]}"
fi

((code == 0)) && [[ ${DRY_RUN:-0} == 1 ]] && exit 0
# What is on disk counts: a rank that crashes while it exits does not undo the step.
if finished && ((code == 0 || !was_finished)); then
  tell "growth step $STEP is finished$( ((code == 0)) || echo " (but srun ended with code $code)")"
  exit 0
fi
# Slurm ends the ranks before it signals this script.
state=$(squeue --noheader --states=all --jobs="$SLURM_JOB_ID" --format=%T 2> /dev/null)
if [[ -n $state && $state != RUNNING ]]; then
  ended=1
elif preempted; then
  queue_again "growth step $STEP was preempted"
fi
if ((ended)); then   # Slurm decides whether the job is cancelled or requeued
  queue_again_if_out_of_time
  tell "growth step $STEP was ended by Slurm: cancelled, preempted, or a node failed"
  exit "$STOPPED"
fi
# Asked to stop: ranks exit with $STOPPED; one that did not handle the signal yet is ended by it.
if ((stopping)) && { ((code == 0 || code == STOPPED)) || ((code > 128)); }; then
  queue_again "growth step $STEP stopped as it was asked to"
fi
((code == STOPPED)) && end_with_reason "$STOPPED" "growth step $STEP stopped as its ranks were asked to; submit it again to resume"
# Exit code 2 means an error that the user can fix.
((code == 2)) || ! lost_node || queue_again "growth step $STEP has lost a node"
reason=$(tail -n "+$begin" "$log" | grep -ahE '^(train\.py|growclip): error: ' | tail -n 1)
end_with_reason "$((code == 0 ? 1 : code))" "growth step $STEP failed: ${reason:-see $log}"
