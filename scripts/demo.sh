#!/usr/bin/env bash
# Try a cropper in the browser:  bash scripts/demo.sh [flags of scripts/demo.py]
# An image and a question in; the box, the crop and both answers out. Without flags it runs the miniature's models, which
# `bash scripts/miniature.sh` trains; --model_path and --vqa_model_path (or --api_model) name real ones.
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/setup.sh"

source scripts/beside.sh
beside demo # gradio needs another Pillow than requirements.txt
exec "$BESIDE" scripts/demo.py "$@"
