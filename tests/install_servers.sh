#!/usr/bin/env bash
# Installs the servers that slow tests use, from Debian packages. Without them these tests are skipped with a reason.
set -eu
apt-get update -qq
apt-get install -y -qq --no-install-recommends postgresql
