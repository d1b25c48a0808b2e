#!/bin/sh
# Makes the certificates here anew, with openssl. They are good for a hundred years, and for nothing but tests.
set -eu
cd "$(dirname "$0")"
authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -keyout "$1.key" -out "$1.pem" -subj "/CN=rhyolite test $1" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
}
certificate() {
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=rhyolite test $1"
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\nextendedKeyUsage=%s\n' "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -days 36500 -out "$1.pem" -extfile "$1.ext" -CAcreateserial
    rm "$1.csr" "$1.ext"
}
authority ca
authority other-ca
certificate node ca serverAuth
certificate node2 other-ca serverAuth
certificate follower ca clientAuth
certificate stranger other-ca clientAuth
rm -f ca.key other-ca.key ./*.srl
