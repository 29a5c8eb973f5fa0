# shellcheck shell=bash
# Functions shared by the scripts in this folder, which source this file. Errors are one line, with exit code 2.

STOPPED=75   # exit code of train.py after it was asked to stop and wrote a checkpoint

fail() {
  echo "$SCRIPT: error: $*" >&2
  [[ -z ${SLURM_JOB_ID:-} ]] || scontrol update "JobId=$SLURM_JOB_ID" "Comment=error: $*" 2> /dev/null
  exit 2
}

# Reports the state of the job, in its output and as its comment (%k of squeue).
tell() {
  echo "$SCRIPT: $*"
  scontrol update "JobId=$SLURM_JOB_ID" "Comment=$*" 2> /dev/null
}

# Unsets the variables of the allocation in which a script was started, if any: jobs submitted from there would inherit
# them, and their srun would fail. Variables that locate Slurm and authenticate the user stay.
leave_allocation() {
  [[ -n ${SLURM_JOB_ID:-} ]] || return 0
  local name
  for name in "${!SLURM_@}"; do
    case $name in
      SLURM_CONF | SLURM_CONF_SERVER | SLURM_CLUSTERS | SLURM_JWT | SLURM_SACK_*) ;;
      *) unset "$name" ;;
    esac
  done
}

# Parses arguments: NAME=value sets a variable, which must be one of VARIABLES; all others go to REST.
read_arguments() {
  REST=()
  local argument name
  for argument; do
    name=${argument%%=*}
    if [[ $argument == *=* && $name =~ ^[A-Z][A-Z_]*$ ]]; then
      [[ " $VARIABLES " == *" $name "* ]] || fail "there is no variable $name; there are $VARIABLES"
      export "$name=${argument#*=}"
    else
      REST+=("$argument")
    fi
  done
}

# Checks the variables that define a run, and sets the defaults: the run of the paper.
read_run_variables() {
  DEVICE=${DEVICE:-gpu}
  [[ $DEVICE == gpu || $DEVICE == cpu ]] || fail "DEVICE must be gpu or cpu, not $DEVICE"
  CONFIG=${CONFIG:-configs/cc12m.yaml}
  [[ $DEVICE == gpu ]] && DS_CONFIG=${DS_CONFIG:-ds_configs/zero2.json}
  DS_CONFIG=${DS_CONFIG:-ds_configs/cpu.json}
  local base
  base=$(basename "$CONFIG")
  RUN_DIR=${RUN_DIR:-runs/${base%.*}}
}

require_run_files() {
  [[ -f $CONFIG ]] || fail "there is no $CONFIG: set CONFIG to the run's configuration"
  [[ -f $DS_CONFIG ]] || fail "there is no $DS_CONFIG: set DS_CONFIG to a DeepSpeed file"
}

# Redirects further output to a file in the run's folder; the first lines of a job stay in the file that sbatch names.
print_to() {
  [[ $1 -ef /dev/stdout ]] && return
  echo "$SCRIPT: output goes to $1"
  exec >> "$1" 2>&1
}

# Goes to the project's folder, reads the site's settings and finds Python there.
# Sets RUN_PYTHON: the words that run Python, in the site's container if it has one.
enter_project() {
  GROWCLIP_HOME=${GROWCLIP_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
  [[ -f $GROWCLIP_HOME/train.py ]] || fail "there is no train.py in $GROWCLIP_HOME: submit from the project's folder, or set GROWCLIP_HOME to it"
  cd "$GROWCLIP_HOME" || fail "cannot enter the project's folder $GROWCLIP_HOME"
  GROWCLIP_HOME=$PWD   # it may have been relative
  local python=python3
  [[ -x .venv/bin/python ]] && python=$GROWCLIP_HOME/.venv/bin/python
  CONTAINER=()
  if [[ -f slurm/site.sh ]]; then
    set +u   # scripts of modules and conda use unset variables
    # shellcheck source=site.example.sh
    source slurm/site.sh || fail "slurm/site.sh ended with an error"
    set -u
  fi
  PYTHON=${PYTHON:-$python}
  RUN_PYTHON=("${CONTAINER[@]}" "$PYTHON")
  command -v "${RUN_PYTHON[0]}" > /dev/null || fail "there is no ${RUN_PYTHON[0]}: install the project (make install), or name its Python or container in slurm/site.sh"
  local missing
  missing=$("${RUN_PYTHON[@]}" -c '
import importlib.util
print(*(name for name in ("torch", "deepspeed", "growclip_ds") if importlib.util.find_spec(name) is None))') ||
    fail "${RUN_PYTHON[*]} does not run: see slurm/site.sh"
  [[ -z $missing ]] || fail "${RUN_PYTHON[*]} has no $missing: install the project there (make install), or name another in slurm/site.sh"
}

# Creates the run's folder, and makes RUN_DIR absolute.
open_run_dir() {
  mkdir -p "$RUN_DIR/slurm" 2> /dev/null && [[ -w $RUN_DIR/slurm ]] || fail "the run's folder cannot be written: RUN_DIR=$RUN_DIR"
  RUN_DIR=$(cd "$RUN_DIR" && pwd -P)
}

# Prints the name of the job of a growth step, by which the scripts know whether the step has been submitted.
job_name() {
  local base
  base=$(basename "$RUN_DIR" | tr -c 'A-Za-z0-9_.\n-' _)
  printf '%s-%s-step%d\n' "$base" "$(printf %s "$RUN_DIR" | cksum | cut -d ' ' -f 1)" "$1"
}

# Prints the id of the running or pending job of a growth step; an empty line if there is none.
job_of_step() {
  local jobs
  jobs=$(squeue --noheader --me --name="$(job_name "$1")" --format=%A) || return
  printf '%s\n' "${jobs%%$'\n'*}"
}

# Prints the numbers of the unfinished growth steps.
unfinished_steps() {
  "${RUN_PYTHON[@]}" -m growclip_ds steps --config "$CONFIG" --output-dir "$RUN_DIR" --unfinished "$@"
}

# Nothing may access the internet from a compute node, and output must appear at once.
set_environment() {
  export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONUNBUFFERED=1
  if [[ $DEVICE == cpu ]]; then
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS_PER_TASK}
    return
  fi
  # Otherwise DeepSpeed falls back to the CPU if it finds no GPU.
  export DS_ACCELERATOR=${DS_ACCELERATOR:-cuda} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  # Compiled kernels go to a local disk: on a shared home, a rank may see files that another has replaced.
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/triton-$(id -un)}
  # So that the output names a failed link instead of hanging silently.
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  # A switch may be busy for seconds (4 µs x 2^22, with seven retries); NCCL's default is a quarter of that or less.
  export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}
}

# Determines the ranks per node, the CPUs per rank, and the address for their rendezvous.
# Sets RANKS_PER_NODE, CPUS_PER_TASK, MASTER_ADDR and MASTER_PORT.
plan_ranks() {
  if [[ $DEVICE == cpu ]]; then
    RANKS_PER_NODE=${RANKS_PER_NODE:-1}
  else
    RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
  fi
  [[ $RANKS_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "the job has no GPUs (RANKS_PER_NODE is $RANKS_PER_NODE): request some (--gpus-per-node=8), or set DEVICE=cpu"
  # Nodes may differ, but srun needs one figure for all; Slurm lists the CPUs of the nodes in the form 128(x2),96.
  local cpus
  cpus=$(tr , '\n' <<< "${SLURM_CPUS_ON_NODE:-1}${SLURM_JOB_CPUS_PER_NODE:+,$SLURM_JOB_CPUS_PER_NODE}" | sed 's/(.*//' | sort -n | head -n 1)
  CPUS_PER_TASK=$((cpus / RANKS_PER_NODE))
  ((CPUS_PER_TASK > 0)) || fail "a node has $cpus CPUs for $RANKS_PER_NODE ranks: request more (--cpus-per-task), or set RANKS_PER_NODE"
  MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
  # Below the range of ephemeral ports, and different for jobs that share a node.
  MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
  export RANKS_PER_NODE MASTER_ADDR MASTER_PORT
}

# Whether the job is being preempted. During a grace time the job stays in that state; if it ends before the time is over,
# Slurm does not requeue it.
preempted() {
  local job
  job=$(scontrol show job "$SLURM_JOB_ID" 2> /dev/null)
  [[ $job == *" PreemptTime="* && $job != *" PreemptTime=None"* ]]
}

# Requeues the job and ends it: `requeue WHY`. Returns only if Slurm refuses.
requeue() {
  tell "$1, and is requeued"
  scontrol requeue "$SLURM_JOB_ID" || return
  sleep 60   # until Slurm ends the job
  exit "$STOPPED"
}

# Starts a step of the job. It states its GPUs itself (--gpus-per-node or --gres=none): the job's requests are hidden from
# srun, since SLURM_GPUS_PER_NODE keeps the script's own figure even if the job requested fewer with --gres or --gpus.
SRUN=(env -u SLURM_GPUS -u SLURM_GPUS_PER_NODE -u SLURM_GPUS_PER_TASK -u SLURM_TRES_PER_TASK -u SLURM_GPU_BIND
  -u SLURM_TRES_BIND srun --export=ALL --mpi=none --input=none)

# Runs a command on every rank: `run_ranks COMMAND...`. Each sees all of the job's GPUs on its node, as NCCL and LOCAL_RANK
# require. (With --gpu-bind=none a rank would not know which GPUs of a shared node belong to the job.)
run_ranks() {
  # A rank that exits early ends the job step, but the others get time to exit by themselves, with their own exit codes.
  # Slurm's default distribution, block:cyclic, alternates ranks over the sockets of a node, while the first half of the
  # GPUs is usually attached to the first socket.
  "${SRUN[@]}" --kill-on-bad-exit=0 --wait=60 --nodes="$SLURM_JOB_NUM_NODES" \
    --ntasks=$((SLURM_JOB_NUM_NODES * RANKS_PER_NODE)) --ntasks-per-node="$RANKS_PER_NODE" \
    --cpus-per-task="$CPUS_PER_TASK" ${SLURM_GPUS_ON_NODE:+--gpus-per-node="$SLURM_GPUS_ON_NODE"} \
    --distribution="${SLURM_DISTRIBUTION:-block:block}" \
    bash slurm/rank.sh "$@"
}
