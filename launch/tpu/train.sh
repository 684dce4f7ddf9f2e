#!/usr/bin/env bash
# Copies the last commit of this project to every machine of the slices and trains, restarting until the run is finished.
#
#   NAME=sft-32b ZONE=us-east5-a launch/tpu/train.sh --config=configs/sft_32b.py --config.run_dir=gs://MY-BUCKET/runs/sft_32b
#
# run_dir must be where every machine sees it: in gs://, or on a mounted file system (Filestore, mount_bucket.sh).
#
# NAME, ZONE, SLICES  as for create_slice.sh
# ENVIRONMENT         environment variables of the job: "OPENAI_API_KEY=.. OTHER=.."
# LIBTPU_INIT_ARGS    compiler flags, the same as for the plan; docs/tpu.md has those that overlap collectives
# PREPARE             a command to run on every machine before each start, for machines that return without their disk
# RETRIES             consecutive starts that may fail within ten minutes (default 5)
set -euo pipefail
: "${NAME:?}" "${ZONE:?}"
SLICES=${SLICES:-1}
RETRIES=${RETRIES:-5}
HERE=$(cd "$(dirname "$0")/../.." && pwd)
RUN="$HERE/launch/tpu/on_every_host.sh"
FLAGS=" $* "
case "${FLAGS//--config.run_dir /--config.run_dir=}" in
  *" --config.run_dir=gs://"* | *" --config.run_dir=/"*) ;;
  *) echo "error: give --config.run_dir=gs://.., or a path on a file system that every machine sees" >&2; exit 2 ;;
esac
ARGUMENTS=$(printf ' %q' "$@")
[ -z "$(git -C "$HERE" status --porcelain)" ] || { echo "error: commit your changes: the last commit is what is copied" >&2; exit 2; }

attempt() {  # returns the exit code of the training command, or 1
  "$RUN" "${PREPARE:-true}" || return 1
  git -C "$HERE" archive --format=tar.gz HEAD >"/tmp/$NAME.tar.gz" || return 1
  for ((slice = 0; slice < SLICES; slice++)); do
    NODE=$NAME
    [ "$SLICES" = 1 ] || NODE="$NAME-$slice"
    gcloud compute tpus tpu-vm scp "/tmp/$NAME.tar.gz" "$NODE:~/project.tar.gz" --zone="$ZONE" --worker=all || return 1
  done
  "$RUN" 'rm -rf ~/project && mkdir ~/project && tar -xzf ~/project.tar.gz -C ~/project \
    && cd ~/project && ~/venv/bin/pip install --quiet --constraint constraints.txt --editable ".[tpu,gcs]"' || return 1
  "$RUN" "cd ~/project && env LIBTPU_INIT_ARGS=$(printf %q "${LIBTPU_INIT_ARGS:-}") ${ENVIRONMENT:-} ~/venv/bin/python -m launch.train --distributed$ARGUMENTS"
}

FAILURES=0
while true; do
  STARTED=$SECONDS CODE=0
  attempt || CODE=$?
  # 2: an error in the settings or the data. 3: the run diverged, or its judge abstained too often. 130: Ctrl-C. 75: the run was
  # told to stop and has saved everything. Any other code is a machine that went away, or an error that a restart may cure.
  case "$CODE" in
    0) echo "finished"; exit 0 ;;
    2 | 3 | 130) exit "$CODE" ;;
    75) FAILURES=0 ;;
    *) [ $((SECONDS - STARTED)) -lt 600 ] && FAILURES=$((FAILURES + 1)) || FAILURES=1 ;;
  esac
  [ "$FAILURES" -lt "$RETRIES" ] || { echo "error: $RETRIES starts in a row have failed" >&2; exit "$CODE"; }
  echo "ended with code $CODE; starting again in a minute"
  sleep 60
done
