#!/bin/sh
# Runs a command while the checkpoints' weights, which a transfer has no room for, lie aside; they come
# back when it has ended, failed or been interrupted.
#   sh benchmarks/gpu/carry.sh COMMAND…
# What a killed run has left aside, the next one brings back first. Run it at the repository's top.
set -eu
ASIDE=.kit/aside
[ -d checkpoints ] || { echo "run it at the repository's top: there is no folder checkpoints" >&2; exit 2; }
[ $# -gt 0 ] || { echo "expected a command, such as: sh $0 sleep 1500" >&2; exit 2; }

restore() {
  for folder in "$ASIDE"/*/; do
    for file in "$folder"/*.safetensors; do
      [ -e "$file" ] || continue
      mv "$file" "checkpoints/$(basename "$folder")/"
    done
    rmdir "$folder" 2>/dev/null || true
  done
}

child=
end() {
  [ -z "$child" ] || kill "$child" 2>/dev/null || true
  restore
}

restore
trap end EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
for file in checkpoints/*/*.safetensors; do
  [ -e "$file" ] && [ ! -L "$file" ] || continue
  folder=$ASIDE/$(basename "$(dirname "$file")")
  mkdir -p "$folder"
  mv "$file" "$folder/"
done
# In the background: a shell runs its traps only between commands in the foreground.
exec 3<&0
"$@" <&3 &
child=$!
status=0
wait "$child" || status=$?
child=
exit "$status"
