#!/usr/bin/env bash
# setup.sh runtime|dev|litellm|bench: bring a Debian or Ubuntu machine to where the targets of the Makefile run.
#   runtime  the playbooks (enough for `make trial`): a virtual environment, no root
#   dev      all tests: also Debian packages, Go, npm packages
#   litellm  the real LiteLLM in an environment of its own; its last line of output says where
#   bench    what `make bench-gateway` compares with; its last three lines of output say where (name=path)
# A second run does nothing: each step compares what is there with what the locks ask for.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:?runtime, dev, litellm or bench}
venv=.venv
stamps=$venv/.hearth

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo "$@"
  else die "Debian packages are missing ($missing) and this user may not install them. Run: sudo apt-get install $missing"
  fi
}

# apt_need PACKAGE…: install what is missing, in one apt run.
apt_need() {
  missing=
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=" $package"
  done
  missing=${missing# }
  [ -n "$missing" ] || return 0
  command -v apt-get >/dev/null || die "this machine has no apt-get; install by hand: $missing"
  say "Debian packages: $missing"
  as_root apt-get -qq update
  # shellcheck disable=SC2086  # a list of package names
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
}

python=${HEARTH_PYTHON:-python3}
command -v "$python" >/dev/null || die "$python is missing. Install it: sudo apt install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$("$python" --version) is too old: Python 3.11 or newer is needed. Name one with HEARTH_PYTHON=/path/to/python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null || apt_need python3-venv

# install LOCK: bring the virtual environment to a lock, unless it is there already.
install_lock() {
  local lock=$1 stamp
  stamp=$stamps/$(basename "$lock" .txt)-$(sha256sum "$lock" | cut -c1-16)
  [ -e "$stamp" ] && return 0
  say "Python packages of $lock"
  rm -f "$stamps/$(basename "$lock" .txt)"-*
  # SSL_CERT_FILE and the like name the trust store of a house that has its own; uv must ask for it.
  UV_NATIVE_TLS=1 UV_PYTHON_DOWNLOADS=never "$venv/bin/uv" pip install -q --python "$venv/bin/python" --require-hashes -r "$lock"
  touch "$stamp"
}

# identity LOCK: what is installed by a lock for one Python does not fit another.
identity() { { "$python" -c 'import sys; print(sys.version, sys.base_prefix)' && cat "$1"; } | sha256sum | cut -c1-16; }

# litellm_venv: not into $venv, because what LiteLLM brings along must not run where our own secrets and tests are
# (1.82.8 was backdoored with a file that runs at every start of Python). Half a gigabyte, so only for what needs it.
litellm_venv() {
  local lock=requirements/litellm.txt home
  home=${HEARTH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth}/litellm/$(identity "$lock")
  mkdir -p "$home"
  {
    flock 9 # two test runs at a time must not install over each other
    if [ ! -e "$home/.complete" ] || ! "$home/venv/bin/python" -c '' 2>/dev/null; then
      say "LiteLLM of $lock"
      rm -rf "$home/venv"
      "$python" -m venv --without-pip "$home/venv"
      UV_NATIVE_TLS=1 UV_PYTHON_DOWNLOADS=never "$venv/bin/uv" pip install -q --python "$home/venv/bin/python" \
        --require-hashes --only-binary :all: -r "$lock"
      touch "$home/.complete"
    fi
  } 9>"$home/.lock"
  printf '%s\n' "$home/venv"
}

# bench_tools: nginx is unpacked and not installed, because installing it starts a web server on port 80. apt checks the
# package against the signed index of the distribution, as it does when it installs.
bench_tools() {
  local home lock=requirements/bench.txt package
  home=${HEARTH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth}/bench-gateway/$(identity "$lock")
  mkdir -p "$home"
  if [ ! -x "$home/nginx/usr/sbin/nginx" ]; then
    say "nginx of this distribution, unpacked"
    package=$(mktemp -d)
    # In the folder of a user of its own apt cannot drop its rights, and says so; the download is the same.
    (cd "$package" && apt-get -qq download nginx 2>/dev/null) ||
      die "apt-get cannot download nginx. Run: sudo apt-get update"
    dpkg-deb -x "$package"/nginx_*.deb "$home/nginx"
    rm -rf "$package"
  fi
  "$home/nginx/usr/sbin/nginx" -v 2>/dev/null ||
    die "the unpacked nginx lacks libraries: $(ldd "$home/nginx/usr/sbin/nginx" | grep 'not found' | tr -s '\n\t' ' ')"
  if [ ! -e "$home/python/.complete" ]; then
    say "Python packages of $lock"
    UV_NATIVE_TLS=1 UV_PYTHON_DOWNLOADS=never "$venv/bin/uv" pip install -q --python "$venv/bin/python" --target "$home/python" \
      --require-hashes -r "$lock"
    touch "$home/python/.complete"
  fi
  printf 'nginx=%s\nlitellm_extras=%s\n' "$home/nginx/usr/sbin/nginx" "$home/python"
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
  say "virtual environment $venv ($("$python" --version))"
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
mkdir -p "$stamps"
if [ ! -e "$stamps/bootstrap-$(sha256sum requirements/bootstrap.txt | cut -c1-16)" ]; then
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
  touch "$stamps/bootstrap-$(sha256sum requirements/bootstrap.txt | cut -c1-16)"
fi

# Roles and modules resolve by their full name only below …/ansible_collections/homelab/hearth.
link=.collections/ansible_collections/homelab/hearth
if [ "$(readlink "$link" 2>/dev/null)" != ../../.. ]; then
  mkdir -p "$(dirname "$link")"
  ln -sfn ../../.. "$link"
fi

case $stage in
runtime)
  # dev holds all of runtime at the same versions: installing runtime over it would only cost time.
  compgen -G "$stamps/dev-*" >/dev/null || install_lock requirements/runtime.txt
  ;;
dev)
  apt_need buildah chromium curl docker-registry git iproute2 make mmdebstrap nftables openssh-client openssl qemu-system-x86 \
    postgresql qemu-utils shellcheck skopeo socat systemd-container zstd gcc libc6-dev runc containernetworking-plugins
  install_lock requirements/dev.txt
  if ! go version 2>/dev/null | grep -qE 'go1\.(2[6-9]|[3-9][0-9])'; then
    install_lock requirements/go.txt
  fi
  if ! command -v npm >/dev/null; then apt_need nodejs npm; fi
  package=files/gateway/web-types
  npm_stamp=$package/node_modules/.hearth-$(sha256sum "$package/package-lock.json" | cut -c1-16)
  if [ ! -e "$npm_stamp" ]; then
    say "npm packages of $package"
    npm --prefix "$package" ci --silent --no-fund --no-audit
    touch "$npm_stamp"
  fi
  ;;
arm64)
  apt_need qemu-system-arm qemu-user-static arch-test
  ;;
litellm)
  litellm_venv
  ;;
bench)
  litellm=$(litellm_venv | tail -n 1)
  bench_tools
  printf 'litellm=%s\n' "$litellm"
  ;;
*) die "unknown stage $stage: runtime, dev, arm64, litellm or bench" ;;
esac
