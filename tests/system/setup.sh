#!/usr/bin/env bash
# Install what tests/system/run.sh needs beside the project's own environment (Debian or Ubuntu, as root).
set -euo pipefail
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah debootstrap iproute2 munge slurmctld slurmd slurm-client chromium redis-server prometheus >/dev/null
