#!/usr/bin/env bash
# Check style and format, then run the tests on the CPU, and on the GPU if there is one:
#   bash scripts/test.sh          those that are not marked slow: at most 5 minutes on two cores
#   bash scripts/test.sh --all    all of them, as CI does
#   bash scripts/test.sh ARGS     what pytest makes of these arguments
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/setup.sh"
python3 -m ruff check .
python3 -m ruff format --check .
case ${1-} in
    '') chosen=(-m 'not slow') ;;
    --all) chosen=("${@:2}") ;;
    *) chosen=("$@") ;;
esac
# One process per core, each with one thread.
workers=$(python3 -c 'from cropvlm.models.cores import cpu_count; print(min(8, cpu_count()))')
OMP_NUM_THREADS=1 python3 -m pytest --numprocesses "$workers" --dist worksteal "${chosen[@]}"
if [[ ${1---all} == --all ]] && nvidia-smi >/dev/null 2>&1; then
    CROPVLM_TEST_DEVICE=cuda python3 -m pytest -m gpu
fi
