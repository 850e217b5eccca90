#!/bin/sh
# Lints the .proto files and compares them with what main has committed: lint.sh FOLDER (where buf is kept).
# A change that breaks callers fails. buf comes from npm: where there is no npm nothing is checked, and that is said.
set -eu
folder=$1 version=1.75.0

command -v npm >/dev/null 2>&1 || {
    echo '*** no npm on this machine: the .proto files are NOT LINTED and NOT COMPARED with main ***' >&2
    exit 0
}
buf=$folder/node_modules/.bin/buf
[ "$("$buf" --version 2>/dev/null)" = "$version" ] ||
    npm install --silent --no-audit --no-fund --prefix "$folder" "@bufbuild/buf@$version" >&2

"$buf" lint
for ref in main origin/main HEAD; do
    git rev-parse --quiet --verify "$ref^{commit}" >/dev/null && break
done
git cat-file -e "$ref:buf.yaml" 2>/dev/null || {
    echo "proto-lint: $ref has no buf.yaml, so there is nothing to compare with" >&2
    exit 0
}
"$buf" breaking --against ".git#ref=$ref"
echo "proto-lint: buf $version finds nothing, and nothing that breaks callers of $ref"
