#!/usr/bin/env bash
# Run the tests from the wheel, in a clean environment of the Python that is named, outside the
# checkout. The wheel is built from the source archive, and the tests come out of it too.
#
#   tools/test_wheel.sh python3.12 -n auto -m 'not slow and not gpu'
#
# The environment takes 8 GB below $TMPDIR and is deleted at the end.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
interpreter=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$interpreter" -m venv env
python=$folder/env/bin/python
install() { "$python" -m pip --disable-pip-version-check -qq install -c "$root/constraints.txt" "$@"; }
echo "Building the source archive, and from it the wheel ..."
install build
"$python" -m build --outdir dist "$root" > build.log 2>&1 || { cat build.log; exit 1; }
wheel=$(echo "$folder"/dist/*.whl)
echo "Installing $(basename "$wheel") with its extras on $("$python" -V) (5 minutes, 8 GB) ..."
install "$wheel[train,dev]"
for extra in seg coco ray clip peers crf; do
  install "$wheel[$extra]" || echo "The extra $extra did not install: its tests are skipped."
done
# mmsegmentation and grad-cam ask for opencv-python, which overwrites the headless build.
install --force-reinstall --no-deps opencv-python-headless

mkdir source
tar -xzf dist/*.tar.gz -C source --strip-components=1
rm -r source/adcam source/*.egg-info
cd source
"$python" -c 'import adcam; print("Testing", adcam.__file__)'
ADCAM_SHARED=${ADCAM_SHARED:-$root/../shared} "$python" -m pytest "$@"
