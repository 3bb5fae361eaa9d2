#!/usr/bin/env bash
# Submits COMMAND to SLURM, one process on each GPU node; docs/launch.md goes through it.
#
#   launch/slurm.sh --nodes=2 --gpus_per_node=8 [FLAGS] -- dsi-jax train --gin_file=...
#
# The job is requeued when it is preempted or its time is up: SLURM sends SIGTERM two minutes before
# the end, the run saves, and the same command resumes it. MODEL_DIR must be on a shared file system.
#
# FLAGS
#   --nodes=1            machines
#   --gpus_per_node=8    GPUs of each
#   --cpus_per_node=32   cores of each, for reading data
#   --time=24:00:00      limit of one turn
#   --job_name=dsi       also names the log: dsi-<job>.log
#   --partition=P  --account=A
#   --venv=.venv         environment with dsi-jax[train,cuda], on the shared file system
#   --dry_run            print the batch script, submit nothing
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"

nodes=1 gpus_per_node=8 cpus_per_node=32 time=24:00:00 job_name=dsi partition='' account=''
venv=.venv
parse "nodes gpus_per_node cpus_per_node time job_name partition account venv" "$@"
need_command

batch_script() {
  cat << SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=$job_name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus_per_node
#SBATCH --cpus-per-task=$cpus_per_node
#SBATCH --time=$time
#SBATCH --output=$job_name-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}
set -uo pipefail
export PATH=$(cd "$venv" 2> /dev/null && pwd || echo "$venv")/bin:\$PATH
# One process a node, which sees all of its GPUs; dsi-jax reads the rest from SLURM's variables.
export XLA_FLAGS="\${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
srun --kill-on-bad-exit=1 $(quoted "${COMMAND[@]}")
status=\$?
# 143: SIGTERM came, the run saved and wants to go on.
[ \$status -ne 143 ] || scontrol requeue "\$SLURM_JOB_ID"
exit \$status
SCRIPT
}

if ((DRY_RUN)); then
  batch_script
else
  batch_script | sbatch
fi
