#!/bin/sh
# Makes or completes a virtual environment with plain `python3 -m venv` and pip: setup-venv.sh VENV EXTRAS STAMP
# Apart from the Makefile, which calls it when STAMP is missing: every check that a new machine may fail is told here.
# Quiet: one line before, one after. Running it again after an interruption goes on where pip stopped.
set -eu
venv=$1 extras=$2 stamp=$3
python=${PYTHON:-python3}

fail() {
    printf '\npenstock set-up: %s\n' "$1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "no $python on this machine. Install Python 3.11 or newer (Debian, Ubuntu: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version 2>&1) is too old, Python 3.11 or newer is needed. Name another: make PYTHON=python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module. Debian, Ubuntu: apt install python3-venv"

free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
[ "$free_kib" -ge 1572864 ] ||
    fail "only $((free_kib / 1024)) MiB are free here, 1.5 GiB are needed"

echo "penstock set-up: $venv [$extras] ..." >&2
began=$(date +%s)
# A half-made environment (interrupted before pip was in it) is made again; a whole one is kept and topped up.
"$venv/bin/python" -c 'import sys, pip; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null ||
    "$python" -m venv "$venv" || fail "$python -m venv $venv failed (above)"
log=$venv/penstock-setup.log
"$venv/bin/python" -m pip --require-virtualenv install --disable-pip-version-check --no-input -q -e ".[$extras]" >"$log" 2>&1 </dev/null || {
    grep -v 'Location .file:' "$log" | tail -n 20 >&2
    fail "pip failed (above; all of it: $log). Is the package index reachable? Then run make again, it goes on from here"
}
rm -f "${stamp%-*}"-*
: >"$stamp"
echo "penstock set-up: done in $(($(date +%s) - began)) s" >&2
