#!/usr/bin/env bash
# Check style and format, then run the tests on the CPU:  bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
python3 -m pytest "$@"
