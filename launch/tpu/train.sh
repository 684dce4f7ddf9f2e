#!/usr/bin/env bash
# Copies this project to every machine of the slices and trains, again and again until the run is finished.
#
#   NAME=sft-32b ZONE=us-east5-a launch/tpu/train.sh --config=configs/sft_32b.py --config.run_dir=/mnt/runs/sft_32b
#
# run_dir must be on a disk that every machine sees (Filestore, or a bucket mounted with Cloud Storage FUSE).
set -euo pipefail
: "${NAME:?}" "${ZONE:?}"
SLICES=${SLICES:-1}
HERE=$(cd "$(dirname "$0")/../.." && pwd)
for ((slice = 0; slice < SLICES; slice++)); do
  NODE=$NAME
  [ "$SLICES" = 1 ] || NODE="$NAME-$slice"
  git -C "$HERE" archive --format=tar.gz HEAD >"/tmp/$NAME.tar.gz"
  gcloud compute tpus tpu-vm scp "/tmp/$NAME.tar.gz" "$NODE:~/project.tar.gz" --zone="$ZONE" --worker=all
done
RUN="$HERE/launch/tpu/on_every_host.sh"
"$RUN" 'rm -rf ~/project && mkdir ~/project && tar -xzf ~/project.tar.gz -C ~/project \
  && cd ~/project && ~/venv/bin/pip install --quiet --constraint constraints.txt --editable ".[tpu]"'
ARGUMENTS=$(printf ' %q' "$@")
while true; do
  CODE=0
  "$RUN" "cd ~/project && ~/venv/bin/python -m launch.train --distributed$ARGUMENTS" || CODE=$?
  # 75: it was told to stop and has saved everything. What is not 0, 1 or 2 is a machine that went away.
  case "$CODE" in
    0) echo "finished"; exit 0 ;;
    1 | 2) exit "$CODE" ;;
    *) echo "ended with code $CODE; starting again in a minute"; sleep 60 ;;
  esac
done
