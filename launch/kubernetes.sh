#!/usr/bin/env bash
# Runs COMMAND as a Kubernetes JobSet, one pod on each host; docs/launch.md goes through it.
#
#   launch/kubernetes.sh --image=IMAGE --hosts=2 --gpus=8 [FLAGS] -- dsi-jax train --gin_file=...
#   launch/kubernetes.sh --image=IMAGE --hosts=16 --tpu=tpu-v5p-slice --topology=4x4x4 [FLAGS] -- ...
#
# A pod that fails or is taken away restarts the set, which resumes. MODEL_DIR lies on --claim, a
# volume that all pods can write (ReadWriteMany), mounted at /mnt/dsi.
#
# FLAGS
#   --name=dsi         of the JobSet
#   --image=IMAGE      container with dsi-jax[train,cuda] or [train,tpu] (launch/Dockerfile)
#   --hosts=1          pods; of a TPU slice, the hosts that make it up
#   --gpus=0           GPUs of each pod
#   --tpu=TYPE         GKE's node label, e.g. tpu-v5p-slice, tpu-v5-lite-podslice, tpu-v6e-slice
#   --topology=4x4x4   of the TPU slice
#   --chips=4          TPU chips of a host
#   --slices=1         TPU slices
#   --claim=dsi        PersistentVolumeClaim
#   --restarts=100     of the whole set
#   --dry_run          print the manifest, apply nothing
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"

name=dsi image='' hosts=1 gpus=0 tpu='' topology='' chips=4 slices=1 claim=dsi restarts=100
parse "name image hosts gpus tpu topology chips slices claim restarts" "$@"
need image
need_command
[[ -z $tpu ]] || need topology

# The words as a YAML list of double-quoted strings.
yaml_list() {
  local word list=''
  for word in "$@"; do
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  echo "[${list#, }]"
}

# On TPUs GKE tells each pod of its slice; elsewhere dsi-jax reads these.
coordinator() {
  [[ -z $tpu ]] || return 0
  cat << LINES
                - name: JAX_COORDINATOR_ADDRESS
                  value: "$name-hosts-0-0.$name:12321"
                - name: JAX_PROCESS_COUNT
                  value: "$hosts"
LINES
}

selector() {
  [[ -n $tpu ]] || return 0
  cat << LINES
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $tpu
                cloud.google.com/gke-tpu-topology: $topology
LINES
}

device() {
  if [[ -n $tpu ]]; then
    echo "google.com/tpu: $chips"
  else
    echo "nvidia.com/gpu: $gpus"
  fi
}

manifest() {
  cat << MANIFEST
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
    - name: hosts
      replicas: $slices
      template:
        spec:
          completionMode: Indexed
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
$(selector)
              containers:
                - name: dsi
                  image: "$image"
                  command: $(yaml_list "${COMMAND[@]}")
                  env:
                    - name: PYTHONUNBUFFERED
                      value: "1"
$(coordinator | sed 's/^/    /')
                  ports:
                    - containerPort: 12321
                  resources:
                    limits:
                      $(device)
                  volumeMounts:
                    - name: work
                      mountPath: /mnt/dsi
                    - name: shared-memory
                      mountPath: /dev/shm
              volumes:
                - name: work
                  persistentVolumeClaim:
                    claimName: $claim
                - name: shared-memory
                  emptyDir:
                    medium: Memory
MANIFEST
}

if ((DRY_RUN)); then
  manifest
else
  manifest | kubectl apply -f -
fi
