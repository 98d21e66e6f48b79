# Sourced by the other scripts: make .venv once, install requirements.txt into it when that file has changed, and use it.
# CROPVLM_PYTHON names another interpreter to start from (default python3, 3.11 or newer).
# An interrupted setup continues the next time: the record of a complete installation is written last.
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." # an absolute path, so that CDPATH is ignored

# stop MESSAGE: end with one line on stderr.
stop() {
    echo "error: $1" >&2
    exit 2
}

# make_venv PYTHON: make a .venv with pip, or complete an interrupted one. Without Debian's python3-venv, the pip of
# PYTHON installs pip there.
make_venv() {
    "$1" -m venv .venv >/dev/null 2>&1 && return
    "$1" -m venv --without-pip .venv &&
        "$1" -m pip install --quiet --disable-pip-version-check pip \
            --target "$(.venv/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
}

# has_interpreter: whether .venv still has the interpreter that it was made with. An upgrade may have removed it or
# replaced it by another version, which looks for packages in another folder.
has_interpreter() {
    local version
    version=$(basename "$(readlink -f .venv/bin/python3)")
    [[ -x .venv/bin/python3 && (! $version =~ ^python3\.[0-9]+$ || -d .venv/lib/$version) ]]
}

if ! has_interpreter || ! cmp -s requirements.txt .venv/installed-requirements.txt; then
    python=${CROPVLM_PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "Python 3.11 or newer is required; name one with CROPVLM_PYTHON=/path/to/python3.12"
    if ! has_interpreter || ! .venv/bin/python3 -m pip --version >/dev/null 2>&1; then
        echo "setup: making .venv with $("$python" --version)" >&2
        rm -f .venv/installed-requirements.txt .venv/bin/python*
        make_venv "$python" || stop "$python cannot make an environment in .venv; install python3-venv, or free space"
    fi
    echo "setup: installing requirements.txt into .venv, 6 GB with torch and CUDA: minutes the first time" >&2
    quiet=$([[ -t 2 ]] || echo --quiet) # on a terminal pip shows what it downloads
    .venv/bin/python3 -m pip install $quiet --disable-pip-version-check -r requirements.txt >&2 ||
        stop "pip could not install requirements.txt (its reason is above); fix that and run the same command again"
    cp requirements.txt .venv/installed-requirements.txt
    echo "setup: done" >&2
fi
source .venv/bin/activate
