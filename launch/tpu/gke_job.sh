#!/usr/bin/env bash
# Starts a training job on GKE with xpk (pip install xpk), on a cluster with slices of the type.
#
#   CLUSTER=pods TYPE=v5p-128 IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/stepaudio-jax NAME=sft-32b \
#     launch/tpu/gke_job.sh --config=configs/sft_32b.py --config.run_dir=gs://MY-BUCKET/runs/sft_32b
#
# The disk of a pod goes with the pod, so the run folder is in a bucket (the pods' service account needs the role Storage Object User
# on it), or on a volume that outlives the pod: VOLUME=1 says that the path of run_dir is one.
#
# LIBTPU_INIT_ARGS  compiler flags, the same as for the plan; docs/tpu.md has those that overlap collectives
set -euo pipefail
: "${CLUSTER:?}" "${TYPE:?}" "${IMAGE:?}" "${NAME:?}"
FLAGS=" $* "
case "${FLAGS//--config.run_dir /--config.run_dir=}" in
  *" --config.run_dir=gs://"*) ;;
  *" --config.run_dir=/"*) [ "${VOLUME:-}" = 1 ] || {
    echo "error: that run_dir would go with its pod: give --config.run_dir=gs://.., or VOLUME=1 if it is on a volume" >&2; exit 2; } ;;
  *) echo "error: give --config.run_dir=gs://BUCKET/FOLDER, which outlives the pods" >&2; exit 2 ;;
esac
ARGUMENTS=$(printf ' %q' "$@")
xpk workload create --cluster="$CLUSTER" --workload="$NAME" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" \
  --docker-image="$IMAGE" --max-restarts="${RESTARTS:-100}" \
  --command="env LIBTPU_INIT_ARGS=$(printf %q "${LIBTPU_INIT_ARGS:-}") python -m launch.train --distributed$ARGUMENTS"
