#!/usr/bin/env bash
# A Cloud TPU slice, or several, from creation to deletion; docs/launch.md goes through it.
#
#   launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [FLAGS] [-- COMMAND]
#
# ACTION
#   create   asks for the slice (a queued resource) and returns; needs --accelerator
#   status   says whether it is there
#   install  puts this checkout and its dependencies on all hosts; mounts --nfs
#   run      starts COMMAND on all hosts and returns; it goes on without this terminal
#   logs     what COMMAND printed, on host --worker of slice --slice; follows
#   stop     asks COMMAND to save and end (SIGTERM)
#   resume   after a preemption: deletes what is left, then create, wait, install and run
#   delete   gives the slice back
#
# FLAGS
#   --accelerator=v5p-128     type and size of a slice
#   --runtime=VERSION         software of the TPU VM; default: Google's for the accelerator
#   --slices=1                slices joined by the data-centre network (meshes/multi_slice.gin)
#   --spot=0                  1: a cheaper slice that may be taken away
#   --nfs=10.0.0.2:/share     file share that all hosts mount at /mnt/dsi; MODEL_DIR lies there
#   --project=P               default: gcloud's own
#   --dry_run                 print the commands, run none
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"

ACTION=${1:-}
[[ -n $ACTION && $ACTION != -* ]] || {
  usage
  exit 2
}
shift
name='' zone='' accelerator='' runtime='' slices=1 spot=0 nfs='' project=''
worker=0 slice=0
parse "name zone accelerator runtime slices spot nfs project worker slice" "$@"
need name zone
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")

nodes() {
  local index
  if ((slices == 1)); then
    echo "$name"
  else
    for ((index = 0; index < slices; index++)); do echo "$name-$index"; done
  fi
}

# on_all TEXT: runs a shell command on every host of every slice.
on_all() {
  local node
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command="$1"
  done
}

# What `create` needs, checked before anything is deleted.
check_request() {
  need accelerator
  [[ -z $runtime ]] || return 0
  case $accelerator in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) die "--runtime must be given for the accelerator $accelerator" ;;
  esac
}

create() {
  check_request
  local request=(gcloud compute tpus queued-resources create "$name" "${where[@]}"
    --accelerator-type="$accelerator" --runtime-version="$runtime")
  if ((slices == 1)); then
    request+=(--node-id="$name")
  else
    request+=(--node-count="$slices" --node-prefix="$name")
  fi
  ((spot)) && request+=(--spot)
  run "${request[@]}"
}

state() {
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)'
}

wait_until_there() {
  ((DRY_RUN)) && {
    state
    return
  }
  local now
  until now=$(state) && [[ $now == ACTIVE ]]; do
    [[ $now != FAILED && $now != SUSPENDED ]] || die "the request for $name is $now"
    sleep 30
  done
}

install() {
  local wheel node directory
  directory=$(cd "$(dirname "$0")/.." && pwd)
  run rm -rf "$directory/dist/tpu"
  run python3 -m pip wheel --quiet --no-deps --wheel-dir "$directory/dist/tpu" "$directory"
  wheel=$(basename "$(compgen -G "$directory/dist/tpu/*.whl" || echo dsi_jax.whl)")
  on_all "mkdir -p dsi"
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm scp "$directory/dist/tpu/$wheel" "$node:dsi/" \
      "${where[@]}" --worker=all
  done
  on_all "python3 -m pip install --quiet --user uv && \
python3 -m uv venv --quiet --clear --python 3.12 dsi/venv && \
python3 -m uv pip install --quiet --python dsi/venv 'dsi/${wheel}[train,tpu]'"
  [[ -z $nfs ]] || on_all "sudo apt-get install --quiet --yes nfs-common && sudo mkdir -p /mnt/dsi \
&& { mountpoint --quiet /mnt/dsi || sudo mount -t nfs $nfs /mnt/dsi; } && sudo chmod 777 /mnt/dsi"
}

start() {
  need_command
  on_all "cd dsi || exit; if [ -f run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then \
echo 'a run goes on already' >&2; exit 1; fi; \
PATH=\$PWD/venv/bin:\$PATH setsid nohup $(quoted "${COMMAND[@]}") > run.log 2>&1 < /dev/null & \
echo \$! > run.pid"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

case $ACTION in
  create) create ;;
  status) state ;;
  install) install ;;
  run) start ;;
  logs)
    mapfile -t all < <(nodes)
    run gcloud compute tpus tpu-vm ssh "${all[$slice]}" "${where[@]}" --worker="$worker" \
      --command="tail -n 100 -f dsi/run.log"
    ;;
  stop) on_all "kill \$(cat dsi/run.pid)" ;;
  resume)
    need_command
    check_request
    delete
    create
    wait_until_there
    install
    start
    ;;
  delete) delete ;;
  *) die "unknown action $ACTION; see --help" ;;
esac
