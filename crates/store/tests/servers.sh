#!/bin/sh
# Installs the servers that the store's tests run against: moto (S3) and wsgidav (WebDAV) from PyPI and Azurite from npm into
# target/servers; OpenSSH (SFTP), Apache and nginx (WebDAV) and etcd from Debian, as root, none of them started; Consul from Debian 11, the last
# that had it, into target/servers.
# Usage: crates/store/tests/servers.sh [moto] [wsgidav] [azurite] [debian] [etcd] [consul]     (default: moto)
set -eu
tests="$(cd "$(dirname "$0")" && pwd)"
servers="$(cd "$tests/../../.." && pwd)/target/servers"
mkdir -p "$servers"

# Installs Debian's packages; they would start their services.
install_unstarted() {
    as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' | $as_root tee /usr/sbin/policy-rc.d >/dev/null
        $as_root chmod +x /usr/sbin/policy-rc.d
        trap '$as_root rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    $as_root apt-get update -q
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}

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
        install_unstarted openssh-server openssh-client apache2 nginx-extras
        ;;
    etcd)
        [ -x /usr/bin/etcd ] && continue
        install_unstarted etcd-server
        ;;
    consul)
        [ -x "$servers/consul/usr/bin/consul" ] && continue
        apt="$servers/consul/apt"
        mkdir -p "$apt/lists/partial" "$apt/archives/partial"
        site="$(apt-get indextargets --format '$(REPO_URI)' | grep '/debian/*$' | head -n 1)"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site bullseye main" > "$apt/sources.list"
        set -- -q -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists" \
            -o "Dir::Cache=$apt" -o APT::Sandbox::User=root
        apt-get "$@" update
        (cd "$servers/consul" && apt-get "$@" download consul && dpkg-deb -x consul_*.deb .)
        ;;
    azurite)
        [ -x "$servers/azurite/node_modules/.bin/azurite-blob" ] && continue
        npm install --silent --no-audit --no-fund --prefix "$servers/azurite" azurite@3.35.0
        ;;
    *) echo "unknown server: $server" >&2; exit 2 ;;
    esac
done
