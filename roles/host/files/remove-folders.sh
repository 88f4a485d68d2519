#!/bin/bash
# Take away what came with us, one path a line in each variable. Says one line for each thing it did.
#   MISSING  folders and files that were not there before, and are ours alone
#   EMPTY    folders that were there and empty, and are ours alone
#   SHARED   folders that were not there before, deepest first; others may have filled them since, so only when empty
# What is mounted in them stays, with the folders above it.
set -euo pipefail

mounts_below() { awk -v prefix="$1/" 'index($2, prefix) == 1 { print $2 }' /proc/self/mounts | sort -r; }

# buildah leaves a mount of its storage folder onto itself; nobody else mounts there.
unmount_storage() {
  local mount
  case $1 in
    /var/lib/containers | /run/containers) ;;
    *) return 0 ;;
  esac
  while read -r mount; do
    umount "$mount"
    echo "unmounted $mount"
  done < <(mounts_below "$1")
}

empty() {
  unmount_storage "$1"
  if [ -n "$(mounts_below "$1")" ]; then
    echo "kept $1: something is mounted in it" >&2
    return 0
  fi
  [ -n "$(ls -A "$1")" ] || return 0
  find "$1" -mindepth 1 -delete
  echo "emptied $1"
}

while read -r path; do
  if [ -n "$path" ] && [ -f "$path" ]; then
    rm -f "$path"
    echo "removed $path"
    # logind goes on with what it read until it is told.
    case $path in
      /etc/systemd/logind.conf.d/*) systemctl kill --signal=HUP systemd-logind.service 2>/dev/null || true ;;
    esac
  fi
  if [ -z "$path" ] || [ ! -d "$path" ]; then continue; fi
  empty "$path"
  if rmdir "$path" 2>/dev/null; then echo "removed $path"; fi
done <<<"${MISSING:-}"

while read -r path; do
  if [ -z "$path" ] || [ ! -d "$path" ]; then continue; fi
  empty "$path"
done <<<"${EMPTY:-}"

while read -r path; do
  if [ -z "$path" ] || [ ! -d "$path" ]; then continue; fi
  if rmdir "$path" 2>/dev/null; then echo "removed $path"; fi
done <<<"${SHARED:-}"
