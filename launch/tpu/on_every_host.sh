#!/usr/bin/env bash
# Runs a command on every machine of the slices: NAME=sft-32b ZONE=us-east5-a SLICES=1 launch/tpu/on_every_host.sh "COMMAND"
set -euo pipefail
: "${NAME:?}" "${ZONE:?}"
COMMAND=${1:?the command to run}
SLICES=${SLICES:-1}
PIDS=()
for ((slice = 0; slice < SLICES; slice++)); do
  NODE=$NAME
  [ "$SLICES" = 1 ] || NODE="$NAME-$slice"
  gcloud compute tpus tpu-vm ssh "$NODE" --zone="$ZONE" --worker=all --command="$COMMAND" &
  PIDS+=($!)
done
CODE=0
for pid in "${PIDS[@]}"; do wait "$pid" || CODE=$?; done
exit "$CODE"
