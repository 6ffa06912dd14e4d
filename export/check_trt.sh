#!/usr/bin/env bash
# Build the shipped model and the full-size CoTracker 3 with the real parser and builder of TensorRT-RTX,
# which need no GPU, in an environment of their own. Usage: check_trt.sh PYTHON (one with the export extra).
set -euo pipefail
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
out=$root/build/check_trt
rtx=$out/venv/bin/python
mkdir -p "$out"

if ! "$rtx" -c 'import tensorrt_rtx' 2>/dev/null; then
  "$python" -m venv --clear "$out/venv"
  "$rtx" -m pip install --quiet --disable-pip-version-check tensorrt-rtx numpy opencv-python-headless
fi

for precision in fp32 mixed; do
  # The shapes decide what builds: two frames of comparison are enough here.
  "$python" "$root/export/export_onnx.py" --precision $precision --points 16 --frames 2 \
    --checkpoint "$root/cotracker_ros/weights/realtime.safetensors" \
    --output "$out/realtime_$precision.onnx"
  # Nor do the weights decide: random ones stand in.
  "$python" "$root/export/export_onnx.py" --precision $precision --points 4 --frames 2 \
    --model cotracker3_online --output "$out/cotracker3_$precision.onnx"
  for model in realtime cotracker3; do
    "$rtx" "$root/export/build_trt.py" "$out/${model}_$precision.onnx" --rtx --build-only \
      --compute-capability SM89 --points 64 64 256 --output "$out/${model}_$precision.engine"
  done
done
echo 'all 4 engines built; they were not run: that needs a GPU'
