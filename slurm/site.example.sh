# shellcheck shell=bash
# Settings of a cluster: copy to slurm/site.sh (which git ignores) and keep what applies. Every job sources it, in the
# project's folder, before it looks for Python; every rank inherits what it exports.

# Modules:
#   module purge
#   module load gcc/13 cuda/12.8

# A conda environment; PYTHON is the interpreter that runs train.py (default: .venv/bin/python, else python3):
#   source "$HOME/miniforge3/bin/activate" growclip
#   PYTHON=python

# A container; this prefix goes before every Python command, on the login node as well as on every rank (options of srun,
# such as --container-image of Pyxis, are not supported):
#   CONTAINER=(apptainer exec --nv --bind /scratch "$HOME/growclip.sif")
#   PYTHON=python3

# The network interface for the ranks' rendezvous, if the hostname of a node resolves to one that others cannot reach:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# Slingshot and EFA need their NCCL plugin (aws-ofi-nccl), or NCCL falls back to TCP sockets:
#   export LD_LIBRARY_PATH=/opt/aws-ofi-nccl/lib:$LD_LIBRARY_PATH

# The cache with the tokenizer's files, downloaded in advance as compute nodes cannot reach the hub:
#   export HF_HOME=/scratch/$USER/huggingface
