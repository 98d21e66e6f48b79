#!/usr/bin/env bash
# Stage 1, SFT:  bash scripts/train_sft.sh GPU [flags of train_sft.py]
# Without a GPU the CPU is used, whatever the number.
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
if [[ ! ${1-} =~ ^[0-9]+$ ]]; then
    echo "error: expected the index of a GPU, then flags of train_sft.py: bash scripts/train_sft.sh 0" >&2
    exit 2
fi
GPU=$1
shift
source "$(dirname "$(readlink -f "$0")")/setup.sh"
exec python3 train_sft.py --gpu "$GPU" "$@"
