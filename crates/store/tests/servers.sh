#!/bin/sh
# Installs the servers that the store's tests run against into target/servers: moto (S3) from PyPI, Azurite from npm.
# Usage: crates/store/tests/servers.sh [moto] [azurite]     (default: moto)
set -eu
tests="$(cd "$(dirname "$0")" && pwd)"
servers="$(cd "$tests/../../.." && pwd)/target/servers"
mkdir -p "$servers"
for server in "${@:-moto}"; do
    case $server in
    moto)
        [ -x "$servers/moto/bin/moto_one_at_a_time" ] && continue
        python3 -m venv "$servers/moto"
        "$servers/moto/bin/python" -m pip install --quiet --disable-pip-version-check 'moto[server]>=5.2,<6'
        printf '#!/bin/sh\nexec "%s/moto/bin/python" "%s/moto_server.py" "$@"\n' "$servers" "$tests" > "$servers/moto/bin/moto_one_at_a_time"
        chmod +x "$servers/moto/bin/moto_one_at_a_time"
        ;;
    azurite)
        [ -x "$servers/azurite/node_modules/.bin/azurite-blob" ] && continue
        npm install --silent --no-audit --no-fund --prefix "$servers/azurite" azurite@3.35.0
        ;;
    *) echo "unknown server: $server" >&2; exit 2 ;;
    esac
done
