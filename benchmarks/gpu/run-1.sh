#!/bin/sh
# Transfer 1, on the GPU machine: proves builds. Needs nothing of another transfer.
#   sh benchmarks/gpu/run-1.sh .kit/1
set -eu
. benchmarks/gpu/unpack.sh
# shellcheck disable=SC2046
timeout -k 5 225 python3 -m benchmarks.gpu.prove_builds --out "$OUT" --seconds "${SECONDS_LEFT:-180}" \
  $(paths_of "$KIT/builds.txt")
