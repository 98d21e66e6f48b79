# Sourced by the other scripts: make .venv once, install requirements.txt into it, in the versions of requirements.lock,
# when either file has changed, and put it first in the PATH, wherever this folder has been moved or copied to.
# CROPVLM_PYTHON names another interpreter to start from (default python3, 3.11 or newer).
# An interrupted setup continues the next time: the record of a complete installation is written last.
# An empty .venv/bin/activate beside that record says that the python3 of the PATH finds the packages, as in a container.
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." # an absolute path, so that CDPATH is ignored
# Whether the python3 of the PATH is to be used as it is.
python_of_path() { [[ -e .venv/bin/activate && ! -s .venv/bin/activate ]]; }

# What clusters, conda and other environments set must not decide where packages go to or come from.
if ! python_of_path; then
    unset PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONOPTIMIZE VIRTUAL_ENV CONDA_PREFIX
    unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_PYTHON
fi
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # torch's threads sleep while they wait

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
    python_of_path && return
    version=$(basename "$(readlink -f .venv/bin/python3)")
    [[ -x .venv/bin/python3 && (! $version =~ ^python3\.[0-9]+$ || -d .venv/lib/$version) ]]
}

# is_installed: whether the files are those that were installed. Environments older than the lock file have no copy of it.
is_installed() {
    cmp -s requirements.txt .venv/installed-requirements.txt &&
        { [[ ! -e .venv/installed-requirements.lock ]] || cmp -s requirements.lock .venv/installed-requirements.lock; }
}

# Imports every distribution that requirements.txt names; a pip.conf may have sent them to another folder.
IMPORT_ALL='
import importlib, importlib.metadata, re, sys
from pathlib import Path

modules = {}
for module, distributions in sorted(importlib.metadata.packages_distributions().items(), reverse=True):
    modules |= {re.sub("[-_.]+", "-", name).lower(): module for name in distributions if module[0] != "_"}
for line in Path("requirements.txt").read_text().splitlines():
    name = re.split(r"[=<>~!;\[@ #]|-\d", Path(line).name)[0] if line.strip() else ""
    if name:
        importlib.import_module(modules[re.sub("[-_.]+", "-", name).lower()])
'

for name in datasets.py datasets/__init__.py; do
    [[ ! -e $name ]] || stop "$name hides the library \`datasets\`; move or rename it"
done
if ! has_interpreter || ! is_installed; then
    python=${CROPVLM_PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "Python 3.11 or newer is required; name one with CROPVLM_PYTHON=/path/to/python3.12"
    if ! has_interpreter || ! .venv/bin/python3 -m pip --version >/dev/null 2>&1; then
        echo "setup: making .venv with $("$python" --version)" >&2
        rm -f .venv/installed-requirements.* .venv/bin/python* .venv/bin/activate
        make_venv "$python" || stop "$python cannot make an environment in .venv; install python3-venv, or free space"
    fi
    echo "setup: installing requirements.txt into .venv, 6 GB with torch and CUDA: minutes the first time" >&2
    quiet=$([[ -t 2 ]] || echo --quiet) # on a terminal pip shows what it downloads
    .venv/bin/python3 -m pip install $quiet --disable-pip-version-check -r requirements.txt -c requirements.lock >&2 ||
        stop "pip could not install requirements.txt (its reason is above); fix that and run the same command again"
    reason=$(.venv/bin/python3 -c "$IMPORT_ALL" 2>&1 >/dev/null) ||
        stop "what pip installed cannot be imported from .venv ($(tail -n 1 <<<"$reason")); see \`pip config list\`"
    cp requirements.lock .venv/installed-requirements.lock
    cp requirements.txt .venv/installed-requirements.txt
    echo "setup: done" >&2
fi
home=$(readlink -f .venv)
if [[ -s .venv/bin/activate ]] && ! grep -qF "$home" .venv/bin/activate; then # it has moved: some files have its path
    .venv/bin/python3 -m venv --without-pip .venv
    { grep -lIZ '^#!.*/python' .venv/bin/* || true; } | xargs -0 -r sed -i "1s|^#!.*/|#!$home/bin/|"
fi
export PATH="$PWD/.venv/bin:$PATH"

if command -v nvidia-smi >/dev/null; then # Triton compiles C at the first step of a training
    header=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    if [[ ! -e $header || (-z ${CC-} && -z $(command -v gcc clang)) ]]; then
        echo "setup: training on this GPU needs a C compiler and Python.h (Debian: apt install gcc python3-dev)" >&2
    fi
fi
