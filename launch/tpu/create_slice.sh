#!/usr/bin/env bash
# Requests TPU slices through the queue, waits for them, and prepares their machines.
#
#   NAME=sft-32b ZONE=us-east5-a TYPE=v5p-128 launch/tpu/create_slice.sh
#
# NAME      name of the queued resource and of the slice (NAME-0, NAME-1, .. with several slices)
# ZONE      zone of the slices
# TYPE      accelerator type, as for launch.plan: v5p-128, v6e-64, v5litepod-256 (for Ironwood, tpu7x-*: gke_job.sh)
# SLICES    number of slices (default 1)
# RUNTIME   machine image (default: the image of the type)
# OPTIONS   further flags for gcloud, for example "--spot" or "--reserved"
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}"
SLICES=${SLICES:-1}
case "$TYPE" in
  v5p-*) IMAGE=v2-alpha-tpuv5 ;;
  v5litepod-*) IMAGE=v2-alpha-tpuv5-lite ;;
  v6e-*) IMAGE=v2-alpha-tpuv6e ;;
  v4-*) IMAGE=tpu-ubuntu2204-base ;;
  tpu7x-*) echo "error: TYPE=$TYPE: use launch/tpu/gke_job.sh for Ironwood, or set RUNTIME to its machine image" >&2; IMAGE=${RUNTIME:?} ;;
  *) echo "error: TYPE=$TYPE is unknown; set RUNTIME to its machine image" >&2; IMAGE=${RUNTIME:?} ;;
esac
RUNTIME=${RUNTIME:-$IMAGE}

if [ "$SLICES" = 1 ]; then
  NODES=(--node-id="$NAME")
else
  NODES=(--node-count="$SLICES" --node-prefix="$NAME")
fi
# shellcheck disable=SC2086  # OPTIONS is several words
gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
  "${NODES[@]}" ${OPTIONS:-}

echo "waiting for $NAME (a queue: minutes to days; Ctrl-C leaves the request in it)"
until [ "$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)')" = ACTIVE ]; do
  STATE=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)')
  case "$STATE" in FAILED | SUSPENDED) echo "error: $NAME is $STATE" >&2; exit 1 ;; esac
  sleep 30
done
# The Python of the images may be older than this project needs.
"$(dirname "$0")/on_every_host.sh" "sudo apt-get update -qq && sudo apt-get install --yes libsndfile1 \
  && curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --seed --python 3.12 ~/venv"
