#!/usr/bin/env bash
# Train on every worker of a TPU pod: TPU=NAME ZONE=ZONE experiments/launch/tpu_pod.sh
#   --config=configs/pretrain_sct.py:paper --workdir=/mnt/runs/w --config.data.store=/mnt/runs/store (docs/tpu_pods.md)
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"
arguments=""
if [[ $# -gt 0 ]]; then printf -v arguments ' %q' "$@"; fi
command="cd $(printf %q "${FOLDER:-scfm_jax}") && exec .venv/bin/python -u -m experiments.train --distributed$arguments"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
