# Sourced by the scripts of the transfers: unpacks one, and sets the environment that Python needs.
# Arguments: the transfer's folder. Variables: OUT, a folder for what comes back; WORK, for the rest.
KIT=${1:?expected the folder of the transfer, such as .kit/1}
: "${OUT:?expected a folder for what comes back, in the variable OUT}"
WORK=${WORK:-/tmp/iblip-gpu}
export PYTHONUNBUFFERED=1 IBLIP_CACHE="$WORK/cache"
mkdir -p "$WORK/site" "$WORK/builds" "$WORK/true_size"

for kind in site builds true_size; do
  for archive in "$KIT/$kind"/*.tar.xz; do
    [ -e "$archive" ] && python3 -m tarfile -e "$archive" "$WORK/$kind" &
  done
done
wait
[ -d "$WORK/site/onnxruntime" ] || {
  echo "ONNX Runtime is not here: this transfer needs a machine that has just run transfer 1" >&2
  exit 3
}
[ ! -e "$KIT/builds.txt" ] || cat "$KIT/builds.txt" >>"$WORK/builds.txt"

# ONNX Runtime looks for CUDA's libraries in a folder `nvidia` beside its own; torch's lie beside torch.
if [ ! -e "$WORK/site/nvidia" ]; then
  nvidia=$(python3 -c 'from importlib.util import find_spec; s = find_spec("nvidia")
print(list(s.submodule_search_locations)[0] if s else "")')
  [ -z "$nvidia" ] || ln -s "$nvidia" "$WORK/site/nvidia"
fi
export PYTHONPATH="$WORK/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Paths of the builds that a list names.
paths_of() { sed "s|^|$WORK/builds/|" "$1"; }
