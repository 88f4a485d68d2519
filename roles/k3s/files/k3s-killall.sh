#!/bin/bash
# Stop k3s and all its pods, and take away what they leave in the running system: processes, mounts, network
# links, namespaces, packet filter rules, cgroups. Data stays. Says one line for each thing it did; a second run
# says nothing. ssh is never touched: rules that are not k3s's are put back as they were.
set -euo pipefail

DATA_DIR=${K3S_DATA_DIR:-/var/lib/rancher/k3s}
# Where it really lies: a process shows no link that its path went through.
DATA_DIR=$(readlink -m "$DATA_DIR")
# k3s brings its own packet filter tools; a host may have none.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$DATA_DIR/data/current/bin:$DATA_DIR/data/current/bin/aux
export PATH

[ "$(id -u)" = 0 ] || { echo "run this as root" >&2; exit 1; }

have() { command -v "$1" >/dev/null 2>&1; }

stop_units() {
  local unit
  for unit in /etc/systemd/system/k3s*.service; do
    [ -e "$unit" ] || continue
    unit=${unit##*/}
    case $(systemctl show --property=ActiveState --value "$unit") in
      inactive | failed) ;;
      *) systemctl stop "$unit"; echo "stopped $unit" ;;
    esac
  done
}

# Process ids of shims and of whatever else runs from the unpacked release.
release_processes() {
  local exe
  for exe in /proc/[0-9]*/exe; do
    case $(readlink "$exe" 2>/dev/null || true) in
      "$DATA_DIR"/data/*) exe=${exe%/exe}; echo "${exe#/proc/}" ;;
    esac
  done
}

# The given processes and all their descendants. One look at the process table: a pod's process may end meanwhile.
with_descendants() {
  [ $# -gt 0 ] || return 0
  ps -e -o pid=,ppid= | awk -v roots="$*" '
    { parent[$1] = $2 }
    END {
      n = split(roots, list, " ")
      for (i = 1; i <= n; i++) wanted[list[i]] = 1
      do {
        grown = 0
        for (p in parent) if (!(p in wanted) && (parent[p] in wanted)) { wanted[p] = 1; grown = 1 }
      } while (grown)
      for (p in wanted) print p
    }'
}

kill_pods() {
  local pids
  mapfile -t pids < <(release_processes)
  mapfile -t pids < <(with_descendants "${pids[@]}")
  [ ${#pids[@]} -gt 0 ] || return 0
  kill -9 "${pids[@]}" 2>/dev/null || true
  echo "ended ${#pids[@]} processes of pods"
  # Their mounts are busy until the kernel has let them go.
  for _ in $(seq 50); do
    mapfile -t pids < <(release_processes)
    [ ${#pids[@]} -gt 0 ] || return 0
    sleep 0.1
  done
}

# Sockets of shims that have ended. Those of another containerd are still open, and stay.
remove_shim_sockets() {
  local socket
  for socket in /run/containerd/s/*; do
    [ -S "$socket" ] || continue
    if grep -qF " $socket" /proc/net/unix; then continue; fi
    rm -f "$socket"
    echo "removed $socket"
  done
}

# Mount points below a prefix, deepest first. /proc/mounts writes a blank as \040.
mounts_below() { awk -v prefix="$1" 'index($2, prefix) == 1 { print $2 }' /proc/self/mounts | sort -r; }

unmount_below() {
  local mount
  while read -r mount; do
    mount=$(printf '%b' "$mount")
    umount -f "$mount" 2>/dev/null || umount -l "$mount"
    echo "unmounted $mount"
    # Never through a mount that is still there: its content may be somebody's volume.
    mountpoint -q "$mount" || rm -rf --one-file-system "$mount"
  done < <(mounts_below "$1")
}

# One end of a pair takes the other along, and the kernel clears away a namespace with its links in its own time: a link
# may be gone before its turn, and also between the look and the deed.
delete_link() {
  [ -e "/sys/class/net/$1" ] || return 0
  if ! ip link delete "$1" 2>/dev/null; then
    [ -e "/sys/class/net/$1" ] || return 0
    ip link delete "$1"
  fi
  echo "deleted link $1"
}

remove_network() {
  local name
  if have ip; then
    while read -r name; do
      ip netns delete "$name"
      echo "deleted network namespace $name"
    done < <(ip netns list 2>/dev/null | awk '$1 ~ /^cni-/ { print $1 }')
    while read -r name; do
      delete_link "$name"
    done < <(ip -o link show master cni0 2>/dev/null | awk -F': ' '{ sub(/@.*/, "", $2); print $2 }')
    for name in cni0 flannel.1 flannel-v6.1 kube-ipvs0 flannel-wg flannel-wg-v6 cilium_host cilium_net cilium_vxlan; do
      delete_link "$name"
    done
  fi
  if [ -e /var/lib/cni ]; then rm -rf /var/lib/cni; echo "removed /var/lib/cni"; fi
}

# Rules of k3s out, everything else back in one transaction.
remove_iptables_rules() {
  local family save
  for family in iptables ip6tables; do
    if ! have "$family-save" || ! have "$family-restore"; then continue; fi
    save=$("$family-save" 2>/dev/null) || continue
    grep -qiE 'KUBE-|CNI-|flannel' <<<"$save" || continue
    grep -viE 'KUBE-|CNI-|flannel' <<<"$save" | "$family-restore"
    echo "removed $family rules of k3s"
  done
}

# kube-proxy's own tables, and tables that iptables made for k3s and that are empty now.
remove_nft_tables() {
  have nft || return 0
  local family table rules
  while read -r _ family table; do
    case $family/$table in
      ip/kube-proxy | ip6/kube-proxy | inet/kube-proxy) ;;
      ip/nat | ip/filter | ip/mangle | ip/raw | ip6/nat | ip6/filter | ip6/mangle | ip6/raw)
        [ "${cleaned:-}" ] || continue
        rules=$(nft list table "$family" "$table" | grep -vcE '^(#.*|table .*|\s*chain .*\{|\s*type .* policy accept;|\s*\}|\s*)$' || true)
        [ "$rules" = 0 ] || continue
        ;;
      *) continue ;;
    esac
    nft delete table "$family" "$table"
    echo "deleted nftables table $family $table"
  done < <(nft list tables)
}

remove_ipsets() {
  local name
  have ipset || return 0
  while read -r name; do
    ipset destroy "$name"
    echo "destroyed ipset $name"
  done < <(ipset list -n 2>/dev/null | grep -E '^(inet6:)?KUBE-' || true)
}

remove_cgroups() {
  local group
  while read -r group; do
    # A controller that is mounted twice shows the same group twice.
    if rmdir "$group" 2>/dev/null; then echo "removed cgroup $group"; fi
  done < <(find /sys/fs/cgroup -depth -type d \( -path '*/kubepods*' -o -path '*/k8s.io*' \) 2>/dev/null)
}

# Empty tables are only ours to delete when we emptied them, so this run's first message decides.
stop_units
kill_pods
remove_shim_sockets
for place in /run/k3s /var/lib/kubelet/pods /var/lib/kubelet/plugins /run/netns/cni-; do unmount_below "$place"; done
remove_network
said=$(remove_iptables_rules)
[ -z "$said" ] || { echo "$said"; cleaned=yes; }
remove_nft_tables
remove_ipsets
remove_cgroups
