#!/bin/sh
# A Debian package that some tests need: install_debian.sh PACKAGE WHO-NEEDS-IT
set -e
if ! command -v apt-get >/dev/null; then
    echo "$2 need $1: install it, then run make test again" >&2
    exit 1
fi
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "$1" >/dev/null
