#!/bin/sh
# install-family NAME [PACKAGE...]: install what docker/locks/NAME.txt pins into /opt/venv, after the
# named packages of torch's own, whose builds (and so their hashes) differ by machine.
set -eu
family=$1 pinned=
shift
pip() { /opt/pip/bin/pip --python /opt/venv/bin/python "$@"; }
for package in "$@"; do
  pinned="$pinned $(grep "^$package==" /locks/constraints.txt)"
done
# shellcheck disable=SC2086  # one word per package
[ $# = 0 ] || pip install --constraint /locks/constraints.txt $pinned
pip install --no-deps --require-hashes -r "/locks/$family.txt"
pip check
site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo /opt/app >"$site/flow_reward.pth"
# What a running server or trainer never reads. Of torch that is 0.2 GB: C++ headers, test programs.
find "$site" -type d \( -name tests -o -path '*/sympy/*/benchmarks' \) -prune -exec rm -rf {} +
# zstandard's second backend, which PyPy takes.
rm -f "$site"/zstandard/_cffi.*.so
find "$site" -type f -name '*.pyi' -delete
rm -rf "$site/torch/include" "$site/torch/test" "$site/torch/share" \
  "$site/tensorboard_data_server/bin" "$site/onnxruntime/transformers"
[ ! -d "$site/torch/bin" ] || find "$site/torch/bin" -type f ! -name torch_shm_manager -delete
