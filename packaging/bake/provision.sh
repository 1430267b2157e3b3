#!/usr/bin/env bash
# Makes this machine the base of an image: installs berth-agent and a containerd, loads and
# pins images, enables the units, and forgets who the machine is. It works by itself, as
# root, and as a shell provisioner of Packer. It reads these variables:
#   BERTH_PACKAGES  folder of the package files (default: the script's)
#   BERTH_ARCHIVES  image archives to load, separated by spaces
#   BERTH_IMAGES    images to pull, separated by spaces
#   BERTH_SETTINGS  a file with settings that all copies share, for /etc/ecs/ecs.config
# Each copy joins by its user data; see user-data.yaml beside this script.
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
packages=${BERTH_PACKAGES:-$here}
say() { printf 'bake: %s\n' "$*"; }
fail() { printf 'bake: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "this needs root; try: sudo $0"
[ -d "$packages" ] || fail "$packages is no folder; set BERTH_PACKAGES"

# Package files have the processor in their names as their kind of system calls it.
if command -v apt-get >/dev/null; then
  file=$(find "$packages" -maxdepth 1 -name "berth-agent_*_$(dpkg --print-architecture).deb" | sort -V | tail -n 1)
  [ -n "$file" ] || fail "there is no package of berth-agent for this machine in $packages"
  wanted=("$(realpath "$file")")
  command -v containerd >/dev/null || wanted+=(containerd)
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install --no-install-recommends "${wanted[@]}"
else
  file=$(find "$packages" -maxdepth 1 -name "berth-agent-[0-9]*.$(uname -m).rpm" | sort -V | tail -n 1)
  [ -n "$file" ] || fail "there is no package of berth-agent for this machine in $packages"
  wanted=("$(realpath "$file")")
  command -v containerd >/dev/null || wanted+=(containerd)
  if command -v zypper >/dev/null; then
    zypper -n install --allow-unsigned-rpm --no-recommends "${wanted[@]}"
  elif command -v dnf >/dev/null; then
    dnf -y --setopt=install_weak_deps=False install "${wanted[@]}"
  else
    yum -y install "${wanted[@]}"
  fi
fi

if [ -n "${BERTH_SETTINGS:-}" ]; then
  install -D -m 0600 "$BERTH_SETTINGS" /etc/ecs/ecs.config
fi

if [ -n "${BERTH_ARCHIVES:-}${BERTH_IMAGES:-}" ]; then
  command -v ctr >/dev/null || fail "ctr is missing; it comes with containerd"
  systemctl start containerd
  for archive in ${BERTH_ARCHIVES:-}; do
    ctr -n berth images import "$archive"
  done
  for image in ${BERTH_IMAGES:-}; do
    ctr -n berth images pull "$image"
  done
  # What is pinned is never cleaned up, neither by the agent nor by others.
  ctr -n berth images ls -q | while read -r image; do
    ctr -n berth images label "$image" io.cri-containerd.pinned=pinned
  done
fi

systemctl stop berth-agent.service 2>/dev/null || :
systemctl enable containerd.service berth-agent.service
if command -v cloud-init >/dev/null; then
  cloud-init clean --logs
fi
# What else is of one host: keys of SSH, the seed and key of systemd, the journal so far.
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -rf /var/log/journal/*
berth-agent bake -clean
berth-agent bake -check
say "done; turn the machine off and copy its disk"
