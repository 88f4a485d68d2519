#!/bin/bash
# Take k3s off this host: stop it (k3s-killall.sh beside this file), then remove unit, binary, configuration and
# data. What is mounted inside the data directory stays, with its content. Says one line for each thing it did.
set -euo pipefail

DATA_DIR=${K3S_DATA_DIR:-/var/lib/rancher/k3s}
# Where it really lies: otherwise only a link to it would go, and the data with their keys would stay.
DATA_DIR=$(readlink -m "$DATA_DIR")
export K3S_DATA_DIR=$DATA_DIR

[ "$(id -u)" = 0 ] || { echo "run this as root" >&2; exit 1; }
case $DATA_DIR in
  /*/*) ;;
  *) echo "the data directory $DATA_DIR cannot be right" >&2; exit 1 ;;
esac

drop() {
  local path
  for path in "$@"; do
    [ -e "$path" ] || [ -L "$path" ] || continue
    rm -rf --one-file-system "$path"
    echo "removed $path"
  done
}

# Whether something is mounted at a path or below it.
holds_mount() { awk -v path="$1" '$2 == path || index($2, path "/") == 1 { found = 1 } END { exit !found }' /proc/self/mounts; }

# Empty a folder and remove it; mount points in it, and the folders above them, stay.
drop_data() {
  local path=$1 entry
  [ -d "$path" ] || return 0
  if ! holds_mount "$path"; then
    drop "$path"
    return
  fi
  for entry in "$path"/* "$path"/.[!.]*; do
    [ -e "$entry" ] || [ -L "$entry" ] || continue
    if mountpoint -q "$entry"; then
      echo "kept $entry: something is mounted there" >&2
    elif [ -d "$entry" ] && [ ! -L "$entry" ]; then
      drop_data "$entry"
    else
      drop "$entry"
    fi
  done
}

K3S_KILLALL=${K3S_KILLALL:-$(dirname "$0")/k3s-killall.sh}
[ ! -e "$K3S_KILLALL" ] || bash "$K3S_KILLALL"

units=()
for unit in /etc/systemd/system/k3s.service /etc/systemd/system/k3s-agent.service; do
  [ -e "$unit" ] || continue
  systemctl disable --quiet "${unit##*/}"
  units+=("${unit##*/}")
  drop "$unit" "$unit.env"
done
drop /etc/systemd/system/k3s.service.env /etc/systemd/system/k3s-agent.service.env
if [ ${#units[@]} -gt 0 ]; then
  systemctl daemon-reload
  systemctl reset-failed "${units[@]}" 2>/dev/null || true
fi
for unit in /etc/systemd/system/k3s*.service; do
  [ -e "$unit" ] || continue
  echo "${unit##*/} is another k3s on this host: its files stay" >&2
  exit 0
done

for name in kubectl crictl ctr; do
  link=/usr/local/bin/$name
  case $(readlink "$link" 2>/dev/null || true) in
    k3s | /usr/local/bin/k3s) drop "$link" ;;
  esac
done
drop /etc/rancher/k3s /etc/rancher/node /run/k3s /run/flannel
drop_data "$DATA_DIR"
drop_data /var/lib/kubelet
drop /usr/local/bin/k3s /usr/local/bin/k3s-killall.sh /usr/local/bin/k3s-uninstall.sh /usr/local/bin/k3s-agent-uninstall.sh
