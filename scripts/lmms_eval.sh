#!/usr/bin/env bash
# Run lmms-eval with this project's plugin:  bash scripts/lmms_eval.sh --model cropvlm --tasks textvqa_val --model_args ...
# serving/lmms.py says which --model_args there are.
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/setup.sh"
source scripts/beside.sh
beside eval
# Editable, so that the plugin is the code of this clone.
[[ -e .venv/eval/plugin.txt && $(<.venv/eval/plugin.txt) == "$PWD" ]] || {
    python3 -m pip --python "$BESIDE" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
    echo "$PWD" >.venv/eval/plugin.txt
}
exec "$BESIDE" -m lmms_eval "$@"
