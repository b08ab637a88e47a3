#!/usr/bin/env bash
# Train on Slurm, one task per GPU: sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 experiments/launch/slurm.sh
#   --config=configs/pretrain_sct.py:paper --workdir=runs/w --config.data.store=runs/store      (docs/slurm.md)
#SBATCH --job-name=scfm_jax
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ -z "${PYTHON:-}" ]]; then
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
exec srun --kill-on-bad-exit=1 "$PYTHON" -u -m experiments.train "$@"
