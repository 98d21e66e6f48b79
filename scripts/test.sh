#!/usr/bin/env bash
# Check style and format, then run the tests on the CPU:  bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/setup.sh"
ruff check .
ruff format --check .
# A process per core, so each with one thread.
OMP_NUM_THREADS=1 python3 -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal "$@"
