#!/bin/sh
# train.sh RUN [torchrun's arguments] -m trainer train [the trainer's arguments]
#
# Ends with 0 exactly if the run is finished. torchrun alone also ends with 0 when the run was saved
# because another pod is being evicted: Kubernetes would take this pod for done, and never restart it.
# Ends with 2 for wrong settings, which no restart mends.
out=$1
shift
rm -f "$out/exit.json"
# A shell that is process 1 does not die of SIGTERM, nor does it pass it on by itself.
trap 'kill -TERM "$torchrun"' TERM
python -m torch.distributed.run "$@" --out "$out" &
torchrun=$!
wait "$torchrun"
# The trap ends the first wait; the trainer is still saving.
wait "$torchrun"
if grep -qs '"exit_code": 2' "$out/exit.json"; then exit 2; fi
if grep -qs '"exit_code": 0' "$out/exit.json" && [ -f "$out/result.json" ]; then exit 0; fi
exit 1
