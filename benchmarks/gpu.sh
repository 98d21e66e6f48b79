#!/usr/bin/env bash
# Measure every line of the table of speeds on this machine's GPU and print it as Markdown:  bash benchmarks/gpu.sh
# Less than 20 minutes; a line that fails or takes too long says so, the others go on.
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
exec python3 benchmarks/gpu_table.py "$@"
