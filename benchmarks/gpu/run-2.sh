#!/bin/sh
# Transfer 2, on a machine that has just run transfer 1: serves its first two builds with Triton, whose
# models run on the GPU, then compares the builds that it brings.
#   sh benchmarks/gpu/run-2.sh .kit/2
set -eu
. benchmarks/gpu/unpack.sh
# Triton's Python models read no PYTHONPATH: they run in the environment of the python3 on PATH.
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
python3 -m venv --without-pip "$WORK/venv"
{ echo "$WORK/site"; python3 -c "$purelib"; } >"$("$WORK/venv/bin/python3" -c "$purelib")/kit.pth"
export PATH="$WORK/venv/bin:$PATH"
head -n 2 "$WORK/builds.txt" >"$WORK/served.txt"
# shellcheck disable=SC2046
timeout -k 5 150 python3 -m benchmarks.gpu.prove_server --out "$OUT" --seconds 90 \
  $(paths_of "$WORK/served.txt") || true
[ ! -s "$KIT/builds.txt" ] || timeout -k 5 75 python3 -m benchmarks.gpu.prove_builds --out "$OUT" \
  --seconds 60 --side-by-side $(paths_of "$KIT/builds.txt")
