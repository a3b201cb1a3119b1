#!/usr/bin/env bash
# Debian's Chromium, which needs root. Where it cannot be installed, the tests that need a browser are skipped, and say so.
set -u
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no Chromium, and no way to install one here: the tests of the report's pages will be skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null; then
    echo "Chromium could not be installed: the tests of the report's pages will be skipped" >&2
fi
