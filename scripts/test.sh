#!/usr/bin/env bash
# Check style and format, then run the tests on the CPU, and on the GPU if there is one:
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/setup.sh"
ruff check .
ruff format --check .
# One process per core, each with one thread.
OMP_NUM_THREADS=1 python3 -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal "$@"
if [[ $# == 0 ]] && nvidia-smi >/dev/null 2>&1; then
    CROPVLM_TEST_DEVICE=cuda python3 -m pytest -m gpu
fi
