#!/usr/bin/env bash
# Installs what slow tests use: servers and debootstrap from Debian packages, and an S3-compatible object store into the
# environment of the checkout. Without them these tests are skipped with a reason.
set -eu
apt-get update -qq
# The tests start servers of their own; the packages start none.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d
trap 'rm -f /usr/sbin/policy-rc.d' EXIT
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    chromium debootstrap munge postgresql prometheus redis-server slurm-wlm
cd "$(dirname "$0")/.."
if [ -x .venv/bin/pip ]; then
    .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[servers]'
else
    echo "the object store is missing: run this again after make has created .venv" >&2
fi
