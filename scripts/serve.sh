#!/usr/bin/env bash
# Add the crop to what any OpenAI client asks:  bash scripts/serve.sh --model_path models/grpo_512 --api_base URL
# An OpenAI-compatible server on 127.0.0.1:8002 before another one (--api_base) or a local model (--vqa_model_path).
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/setup.sh"
exec python3 -m serving.proxy "$@"
