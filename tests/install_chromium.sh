#!/bin/sh
# Debian's Chromium, for the tests that drive the real page.
set -e
if ! command -v apt-get >/dev/null; then
    echo "the browser tests need Chromium: install it so that 'chromium' is on the PATH, then run make test again" >&2
    exit 1
fi
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends chromium >/dev/null
