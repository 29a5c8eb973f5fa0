# shellcheck shell=bash
# What is particular to a cluster: copy to slurm/site.sh (which git ignores) and keep what applies. Every job sources it,
# in the project's folder, before it looks for Python; what it exports reaches every rank.

# Modules:
#   module purge
#   module load gcc/13 cuda/12.8

# A conda environment; PYTHON is the one that runs train.py (by default .venv/bin/python, else python3):
#   source "$HOME/miniforge3/bin/activate" growclip
#   PYTHON=python

# A container; the words go before Python's, on every rank:
#   CONTAINER=(apptainer exec --nv --bind /scratch "$HOME/growclip.sif")
#   PYTHON=python3

# The network interface of the ranks' first contact, where a node's name leads to one that the others do not reach:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# Slingshot and EFA need their NCCL plugin (aws-ofi-nccl), or NCCL falls back to TCP sockets:
#   export LD_LIBRARY_PATH=/opt/aws-ofi-nccl/lib:$LD_LIBRARY_PATH

# Where the tokenizer's files are that were downloaded before, as compute nodes do not reach the hub:
#   export HF_HOME=/scratch/$USER/huggingface
