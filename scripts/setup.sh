#!/bin/sh
# Makes a machine ready: host packages, then npm packages (the pinned Node among them). Quick when all is there.
set -eu
cd "$(dirname -- "$0")/.."

say() { printf '%s\n' "setup: $*"; }

wanted=$(sed -e 's/#.*//' scripts/packages.txt | awk 'NF { print $1 }')
if command -v dpkg-query >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
  missing=
  for package in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
  done
  if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
      root=
    elif command -v sudo >/dev/null 2>&1; then
      root=sudo
    else
      say "these packages are missing, and only root can install them:"
      say "  apt-get install$missing"
      exit 1
    fi
    say "installing$missing"
    $root apt-get -o DPkg::Lock::Timeout=300 update -qq
    # shellcheck disable=SC2086
    $root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $missing >/dev/null
  fi
else
  say "this is not a Debian; see to it that these are installed (Debian's names):"
  say "  $(printf '%s ' $wanted)"
fi

command -v npm >/dev/null 2>&1 || {
  say "npm is missing: install Node.js with npm (any version from 18 on; the project brings its own Node)"
  exit 1
}
stamp=node_modules/.wadah-lock
if ! cmp -s package-lock.json "$stamp"; then
  say "installing npm packages"
  # `npm ci` refuses where a registry lacks packages for other platforms (they are optional, so the lock file can't name them);
  # `npm install` takes the same versions from the lock file. It must not rewrite that.
  lock=$(mktemp)
  cp package-lock.json "$lock"
  trap 'cat "$lock" >package-lock.json; rm -f "$lock"' EXIT
  npm ci --no-audit --no-fund --loglevel=silent || npm install --no-audit --no-fund --loglevel=error
  trap - EXIT
  cat "$lock" >package-lock.json
  rm -f "$lock"
  cp package-lock.json "$stamp"
fi
if ! node_modules/.bin/node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 24 ? 0 : 1)' 2>/dev/null; then
  say "the pinned Node did not arrive with npm: node_modules/node-linux-* is missing (optional dependencies must not be switched off)"
  exit 1
fi
