#!/bin/sh
# What the tests of the page need beside Python: a browser, and axe-core to check that everybody can use it.
command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 ||
  echo "no chromium, and it cannot be installed here: the tests of the page are skipped"
[ -d "$1/axe" ] || npm install --silent --prefix "$1/axe" axe-core@4.10 >/dev/null 2>&1 ||
  echo "no npm, or no axe-core from it: the check of accessibility is skipped"
