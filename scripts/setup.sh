# Sourced by the other scripts: make .venv once, install requirements.txt into it when that file has changed, and use it.
# CROPVLM_PYTHON names another interpreter to start from (default python3, 3.11 or newer).
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"${CROPVLM_PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed; name one with CROPVLM_PYTHON=/path/to/python3.12" >&2
    exit 2
}
if ! cmp -s requirements.txt .venv/installed-requirements.txt; then
    [ -x .venv/bin/python3 ] || "${CROPVLM_PYTHON:-python3}" -m venv .venv
    .venv/bin/python3 -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed-requirements.txt
fi
source .venv/bin/activate
