#!/usr/bin/env bash
# Mounts a bucket at /mnt/job on every machine of the slices, with Cloud Storage FUSE.
#
#   NAME=sft-32b ZONE=us-east5-a BUCKET=MY-BUCKET launch/tpu/mount_bucket.sh
#
# The bucket needs a hierarchical namespace: a finished checkpoint gets its name by an atomic rename of its folder.
set -euo pipefail
: "${BUCKET:?}"
"$(dirname "$0")/on_every_host.sh" "mountpoint -q /mnt/job || (
  set -e
  KEY=/usr/share/keyrings/cloud.google.asc
  LIST=/etc/apt/sources.list.d/gcsfuse.list
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee \$KEY >/dev/null
  echo \"deb [signed-by=\$KEY] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -c -s) main\" | sudo tee \$LIST >/dev/null
  sudo apt-get update -qq
  sudo apt-get install --yes gcsfuse
  sudo mkdir -p /mnt/job
  sudo chown \"\$(id -u)\" /mnt/job
  gcsfuse --implicit-dirs $BUCKET /mnt/job
)"
