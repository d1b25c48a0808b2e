#!/bin/sh
# Installs the servers that the store's tests run against: moto (S3) and wsgidav (WebDAV) from PyPI and Azurite from npm into
# target/servers; OpenSSH (SFTP), Apache and nginx (WebDAV) from Debian, as root, none of them started.
# Usage: crates/store/tests/servers.sh [moto] [wsgidav] [azurite] [debian]     (default: moto)
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
    wsgidav)
        [ -x "$servers/wsgidav/bin/wsgidav" ] && continue
        python3 -m venv "$servers/wsgidav"
        "$servers/wsgidav/bin/python" -m pip install --quiet --disable-pip-version-check 'wsgidav==4.4.0' cheroot
        ;;
    debian)
        [ -x /usr/sbin/sshd ] && [ -x /usr/sbin/apache2 ] && [ -e /usr/lib/nginx/modules/ngx_http_dav_ext_module.so ] && continue
        as_root=""
        [ "$(id -u)" = 0 ] || as_root=sudo
        # The packages would start their services.
        if [ ! -e /usr/sbin/policy-rc.d ]; then
            printf '#!/bin/sh\nexit 101\n' | $as_root tee /usr/sbin/policy-rc.d >/dev/null
            $as_root chmod +x /usr/sbin/policy-rc.d
            trap '$as_root rm -f /usr/sbin/policy-rc.d' EXIT
        fi
        $as_root apt-get update -q
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends openssh-server openssh-client apache2 nginx-extras
        ;;
    azurite)
        [ -x "$servers/azurite/node_modules/.bin/azurite-blob" ] && continue
        npm install --silent --no-audit --no-fund --prefix "$servers/azurite" azurite@3.35.0
        ;;
    *) echo "unknown server: $server" >&2; exit 2 ;;
    esac
done
