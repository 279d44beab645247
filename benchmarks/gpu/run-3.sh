#!/bin/sh
# Transfer 3, on the GPU machine: makes the weights of models of true size, and times them. Needs nothing
# of another transfer.
#   sh benchmarks/gpu/run-3.sh .kit/3
set -eu
end=$(($(date +%s) + ${SECONDS_LEFT:-230}))
. benchmarks/gpu/unpack.sh
for build in "$WORK"/true_size/*/; do
  build=${build%/}
  python3 -m benchmarks.gpu.true_size fill "$build"
  for stage in speed placement; do
    left=$((end - $(date +%s)))
    [ "$left" -gt 15 ] || { echo "$build: no time is left for $stage"; break; }
    timeout -k 5 "$left" python3 -m benchmarks.gpu.prove_builds --out "$OUT" --stage $stage \
      --stage-seconds "$left" "$build" || true
  done
  rm -r "$build"
done
