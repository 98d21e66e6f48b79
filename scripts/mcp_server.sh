#!/usr/bin/env bash
# A tool `zoom` for agents, over stdio:  bash scripts/mcp_server.sh --model_path models/grpo_512
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/setup.sh"
source scripts/beside.sh
beside mcp
exec "$BESIDE" scripts/mcp_server.py "$@"
