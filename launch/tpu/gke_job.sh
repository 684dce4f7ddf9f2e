#!/usr/bin/env bash
# Starts a training job on GKE with xpk (pip install xpk), on a cluster with slices of the type.
#
#   CLUSTER=pods TYPE=v5p-128 IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/stepaudio-jax NAME=sft-32b \
#     launch/tpu/gke_job.sh --config=configs/sft_32b.py --config.run_dir=/mnt/runs/sft_32b
#
# LIBTPU_INIT_ARGS  compiler flags, the same as for the plan; docs/tpu.md has those that overlap collectives
set -euo pipefail
: "${CLUSTER:?}" "${TYPE:?}" "${IMAGE:?}" "${NAME:?}"
ARGUMENTS=$(printf ' %q' "$@")
xpk workload create --cluster="$CLUSTER" --workload="$NAME" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" \
  --docker-image="$IMAGE" --max-restarts="${RESTARTS:-100}" \
  --command="env LIBTPU_INIT_ARGS=$(printf %q "${LIBTPU_INIT_ARGS:-}") python -m launch.train --distributed$ARGUMENTS"
