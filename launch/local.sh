#!/usr/bin/env bash
# Runs COMMAND as one or many processes on this machine, as a pod would; docs/launch.md says when.
#
#   launch/local.sh --processes=2 -- dsi-jax train --gin_file=local_tiny.gin --gin.MODEL_DIR=/tmp/x
#
# The first process prints to the terminal, the others to --logs. When one fails the others are
# stopped; Ctrl-C and SIGTERM reach all of them.
#
# FLAGS
#   --processes=1         processes, which find each other at --port
#   --gpus_per_process=0  GPUs that each sees, in order; 0: all of them
#   --cpu_devices=0       simulated devices of each process, instead of accelerators
#   --port=12321          of the first process
#   --logs=DIR            default: a new directory in /tmp
#   --dry_run             print the commands, run none
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"

processes=1 gpus_per_process=0 cpu_devices=0 port=12321 logs=''
parse "processes gpus_per_process cpu_devices port logs" "$@"
need_command
((DRY_RUN)) || logs=${logs:-$(mktemp -d /tmp/dsi-processes.XXXXXX)}

# command_of INDEX: sets `line` to the words that start a process.
command_of() {
  local first=$(($1 * gpus_per_process)) gpus
  line=(env)
  if ((gpus_per_process)); then
    gpus=$(seq -s , "$first" $((first + gpus_per_process - 1)))
    line+=(CUDA_VISIBLE_DEVICES="$gpus")
  fi
  ((cpu_devices == 0)) || line+=(JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$cpu_devices")
  line+=("${COMMAND[@]}")
  ((processes == 1)) || line+=(--coordinator_address=localhost:"$port"
    --process_count="$processes" --process_index="$1")
}

pids=() signalled=0
stop() { ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2> /dev/null || true; }
trap 'signalled=1; stop' INT TERM

for ((index = 0; index < processes; index++)); do
  command_of "$index"
  echo "+ $(quoted "${line[@]}")" >&2
  ((DRY_RUN)) && continue
  if ((index == 0)); then
    "${line[@]}" &
  else
    "${line[@]}" > "$logs/process_$index.log" 2>&1 &
  fi
  pids+=($!)
done

status=0 left=${#pids[@]}
while ((left)); do
  code=0
  wait -n || code=$?
  if ((signalled)); then # no process ended: the signal ended the waiting
    signalled=0
    continue
  fi
  ((left -= 1)) || true
  if ((code && !status)); then
    status=$code
    ((processes == 1)) || echo "a process ended with status $code; logs: $logs" >&2
    stop
  fi
done
exit "$status"
