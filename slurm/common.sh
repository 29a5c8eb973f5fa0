# shellcheck shell=bash
# What the scripts in this folder share; sourced by them. Says what is wrong in one line and ends with exit code 2.

STOPPED=75   # train.py's exit code when it was asked to stop and has kept a checkpoint

fail() {
  echo "$SCRIPT: error: $*" >&2
  [[ -z ${SLURM_JOB_ID:-} ]] || scontrol update "JobId=$SLURM_JOB_ID" "Comment=error: $*" 2> /dev/null
  exit 2
}

# Tells the output, and squeue (in its %k), how a job stands.
tell() {
  echo "$SCRIPT: $*"
  scontrol update "JobId=$SLURM_JOB_ID" "Comment=$*" 2> /dev/null
}

# Forgets the allocation in which a script was started, if it was in one: what Slurm says of that one would count for the
# jobs that are submitted from there, whose srun then fails. What says where Slurm is, and who asks, stays.
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

# Sorts arguments: NAME=value sets a variable, if it is one of VARIABLES; all else goes to REST.
read_arguments() {
  REST=()
  local argument name
  for argument; do
    name=${argument%%=*}
    if [[ $argument == *=* && $name =~ ^[A-Z][A-Z_]*$ ]]; then
      [[ " $VARIABLES " == *" $name "* ]] || fail "there is no $name to set; there are $VARIABLES"
      export "$name=${argument#*=}"
    else
      REST+=("$argument")
    fi
  done
}

# What a run is, where it is not said: the paper's.
read_run_variables() {
  DEVICE=${DEVICE:-gpu}
  [[ $DEVICE == gpu || $DEVICE == cpu ]] || fail "DEVICE is gpu or cpu, not $DEVICE"
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

# The first lines of a job are in the file that sbatch names, the others in the run's folder.
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
  cd "$GROWCLIP_HOME" || fail "the project's folder $GROWCLIP_HOME cannot be entered"
  GROWCLIP_HOME=$PWD   # it may have been relative
  local python=python3
  [[ -x .venv/bin/python ]] && python=$GROWCLIP_HOME/.venv/bin/python
  CONTAINER=()
  if [[ -f slurm/site.sh ]]; then
    set +u   # what modules and conda source does not keep to it
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

# Makes the run's folder; RUN_DIR becomes absolute.
open_run_dir() {
  mkdir -p "$RUN_DIR/slurm" 2> /dev/null && [[ -w $RUN_DIR/slurm ]] || fail "the run's folder cannot be written: RUN_DIR=$RUN_DIR"
  RUN_DIR=$(cd "$RUN_DIR" && pwd -P)
}

# The name of the job that runs a growth step: by it the scripts know what has been submitted.
job_name() {
  local base
  base=$(basename "$RUN_DIR" | tr -c 'A-Za-z0-9_.\n-' _)
  printf '%s-%s-step%d\n' "$base" "$(printf %s "$RUN_DIR" | cksum | cut -d ' ' -f 1)" "$1"
}

# The number of the job that runs a growth step or is to run it; nothing if there is none.
job_of_step() {
  local jobs
  jobs=$(squeue --noheader --me --name="$(job_name "$1")" --format=%A) || return
  printf '%s\n' "${jobs%%$'\n'*}"
}

# The numbers of the growth steps that are not finished.
unfinished_steps() {
  "${RUN_PYTHON[@]}" -m growclip_ds steps --config "$CONFIG" --output-dir "$RUN_DIR" --unfinished "$@"
}

# Nothing on a compute node reaches out, and what is printed appears at once.
set_environment() {
  export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONUNBUFFERED=1
  if [[ $DEVICE == cpu ]]; then
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS_PER_TASK}
    return
  fi
  # Without it DeepSpeed goes on with the CPU where it finds no GPU.
  export DS_ACCELERATOR=${DS_ACCELERATOR:-cuda} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  # Compiled kernels lie on the node's own disk: a home that all nodes mount may show one rank what another has replaced.
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/triton-$(id -un)}
  # A link that fails is named in the output instead of a silent hang.
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  # A switch that is busy for seconds is no failure (4 µs x 2^22, seven times over; NCCL's own is a quarter of it or less).
  export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}
}

# How many ranks a node has, and how many processors each; and where they meet.
# Sets RANKS_PER_NODE, CPUS_PER_TASK, MASTER_ADDR and MASTER_PORT.
plan_ranks() {
  if [[ $DEVICE == cpu ]]; then
    RANKS_PER_NODE=${RANKS_PER_NODE:-1}
  else
    RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
  fi
  [[ $RANKS_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "the job has no GPUs (RANKS_PER_NODE is $RANKS_PER_NODE): ask for some (--gpus-per-node=8), or set DEVICE=cpu"
  # Whole nodes may differ, and srun wants the same of each; Slurm lists their processors as in 128(x2),96.
  local cpus
  cpus=$(tr , '\n' <<< "${SLURM_CPUS_ON_NODE:-1}${SLURM_JOB_CPUS_PER_NODE:+,$SLURM_JOB_CPUS_PER_NODE}" | sed 's/(.*//' | sort -n | head -n 1)
  CPUS_PER_TASK=$((cpus / RANKS_PER_NODE))
  ((CPUS_PER_TASK > 0)) || fail "a node has $cpus processors for $RANKS_PER_NODE ranks: ask for more (--cpus-per-task), or set RANKS_PER_NODE"
  MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
  # Below the ports that systems hand out by themselves, and another one for another job on the node.
  MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
  export RANKS_PER_NODE MASTER_ADDR MASTER_PORT
}

# Whether Slurm takes the job's nodes from it. With a grace time the job stays in that state until the time is over, and
# one that ends before is not queued again.
preempted() {
  local job
  job=$(scontrol show job "$SLURM_JOB_ID" 2> /dev/null)
  [[ $job == *" PreemptTime="* && $job != *" PreemptTime=None"* ]]
}

# Has Slurm queue the job again, and ends: `requeue WHY`. Returns only where Slurm does not.
requeue() {
  tell "$1, and is queued again"
  scontrol requeue "$SLURM_JOB_ID" || return
  sleep 60   # Slurm ends the job
  exit "$STOPPED"
}

# Starts a step of the job. All of the job's GPUs on a node are seen by each of its tasks there, as NCCL and LOCAL_RANK
# want it, however the job asked for them. (With --gpu-bind=none a rank would not be told which of a shared node's GPUs are
# the job's.)
SRUN=(env -u SLURM_GPU_BIND -u SLURM_TRES_BIND -u SLURM_GPUS_PER_TASK -u SLURM_TRES_PER_TASK
  srun --export=ALL --mpi=none --input=none)

# Runs a command as every rank: `run_ranks COMMAND...`.
run_ranks() {
  # A rank that ends early ends the others, but leaves them the time to end by themselves, with their own exit code.
  "${SRUN[@]}" --kill-on-bad-exit=0 --wait=60 --nodes="$SLURM_JOB_NUM_NODES" \
    --ntasks=$((SLURM_JOB_NUM_NODES * RANKS_PER_NODE)) --ntasks-per-node="$RANKS_PER_NODE" \
    --cpus-per-task="$CPUS_PER_TASK" ${SLURM_GPUS_ON_NODE:+--gpus-per-node="$SLURM_GPUS_ON_NODE"} \
    bash slurm/rank.sh "$@"
}
