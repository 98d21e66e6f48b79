#!/usr/bin/env bash
# Try a cropper in the browser:  bash scripts/demo.sh [flags of scripts/demo.py]
# An image and a question in; the box, the crop and both answers out. Without flags it runs the miniature's models, which
# `bash scripts/miniature.sh` trains; --model_path and --vqa_model_path (or --api_model) name real ones.
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/setup.sh"

# An environment of its own over .venv: gradio needs another Pillow than requirements.txt.
DEMO=.venv/demo
if ! cmp -s requirements-demo.txt $DEMO/installed.txt; then
    echo "setup: installing requirements-demo.txt into $DEMO" >&2
    rm -rf $DEMO
    python3 -m venv --without-pip $DEMO
    site='import sysconfig; print(sysconfig.get_path("purelib"))'
    inner=$($DEMO/bin/python3 -c "$site")
    realpath --relative-to="$inner" "$(python3 -c "$site")" >"$inner/below.pth" # relative: the clone may move
    python3 -m pip --python $DEMO/bin/python3 install --quiet --disable-pip-version-check -r requirements-demo.txt >&2 ||
        stop "pip could not install requirements-demo.txt (its reason is above); fix that and run the same command again"
    cp requirements-demo.txt $DEMO/installed.txt
fi
exec $DEMO/bin/python3 scripts/demo.py "$@"
