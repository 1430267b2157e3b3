#!/usr/bin/env bash
# Makes this host a container instance of an ECS cluster: installs berth-agent from
# package files, writes its settings, starts it and waits until it is connected.
# Everything is checked before anything is changed, and what fails is undone.
# Run it with --help. docs/install.md has examples.
set -euo pipefail
umask 022

usage() {
  cat <<'TEXT'
Usage: install.sh --join-token TOKEN [flags]
       install.sh --region REGION --endpoint URL --key-file FILE [flags]
       install.sh --verify | --uninstall [--purge]

Of the cluster:
  --join-token TOKEN      what "berth token create" printed: all that is needed of the
                          cluster; "-" reads it from standard input, @FILE from a file
  --endpoint URL          the cluster's API; without it, that of AWS in the region
  --region REGION         the region, part of every signature
  --cluster NAME          the ECS cluster to join, which must exist (default: the cluster
                          "default", which is made if it does not)
  --key-file FILE         the agent's key, in the form of an AWS shared credentials file
  --ca-file FILE          certificates, in PEM, that the cluster's is checked against
  --ca-fingerprint SHA256 what the certificate of --ca-file must have, or the token must
                          name, in hex

Of this host:
  --packages DIR          folder of the package files and SHA256SUMS (default: the script's)
  --with-berth            install the package berth as well: cluster, command line, containerd
  --no-start              install, but neither enable nor start the agent
  --dry-run               check everything, say what would be done, and change nothing
  --wait SECONDS          how long the agent may take to connect (default: 120)

Instead of installing:
  --verify                check an installation, and exit with 0 if it works
  --uninstall             end the tasks of this host and remove the packages
  --purge                 with --uninstall: settings, state, keys, logs, volumes and records too

Exit codes: 0 for success, 1 when something failed and was undone, 2 for wrong usage.
TEXT
}

say() { printf '%s\n' "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
wrong() { printf 'install.sh: %s; see install.sh --help\n' "$*" >&2; exit 2; }

endpoint='' region='' cluster='' key_file='' ca_file='' fingerprint='' token=''
packages=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
with_berth=no start=yes dry_run=no mode=install purge=no wait=120

while [ $# -gt 0 ]; do
  case "$1" in
    --endpoint | --ecs-endpoint | --region | --cluster | --key-file | --ca-file | --ca-fingerprint | --join-token | --packages | --wait)
      [ $# -ge 2 ] || wrong "$1 needs a value"
      case "$2" in '' | --*) wrong "$1 needs a value, not '$2'" ;; esac
      case "$2" in *[[:cntrl:]]*) wrong "the value of $1 has a control character" ;; esac
      case "$1" in
        --endpoint | --ecs-endpoint) endpoint=$2 ;;
        --region) region=$2 ;;
        --cluster) cluster=$2 ;;
        --key-file) key_file=$2 ;;
        --ca-file) ca_file=$2 ;;
        --ca-fingerprint) fingerprint=$2 ;;
        --join-token) token=$2 ;;
        --packages) packages=$2 ;;
        --wait) wait=$2 ;;
      esac
      shift 2
      continue
      ;;
    --with-berth) with_berth=yes ;;
    --no-start) start=no ;;
    --dry-run) dry_run=yes ;;
    --verify) mode=verify ;;
    --uninstall) mode=uninstall ;;
    --purge) purge=yes ;;
    --help | -h) usage; exit 0 ;;
    *) wrong "unknown flag '$1'" ;;
  esac
  shift
done
[[ $wait =~ ^[0-9]{1,4}$ ]] || wrong "--wait takes seconds, not '$wait'"
[ "$purge" = no ] || [ "$mode" = uninstall ] || wrong "--purge goes with --uninstall"

config=/etc/ecs/ecs.config
agent=/usr/lib/berth/bin/berth-agent
key=/var/lib/berth/agent/credentials
ca=/etc/berth/ca.pem

# ---- what this host is ----

host() {
  [ "$(id -u)" = 0 ] || fail "this needs root; try: sudo $0 …"
  case "$(uname -m)" in
    x86_64) arch=amd64 rpm_arch=x86_64 ;;
    aarch64) arch=arm64 rpm_arch=aarch64 ;;
    *) fail "there are no packages for processors of the kind $(uname -m)" ;;
  esac
  [ -r /etc/os-release ] || fail "/etc/os-release is missing, so the distribution is unknown"
  local like
  # shellcheck source=/dev/null
  like=$(. /etc/os-release && printf ' %s %s ' "${ID:-}" "${ID_LIKE:-}")
  case "$like" in
    *' debian '* | *' ubuntu '*) family=deb manager=apt-get ;;
    *' suse '* | *' opensuse'* | *' sles '*) family=rpm manager=zypper ;;
    *' rhel '* | *' fedora '* | *' centos '* | *' amzn '*)
      family=rpm manager=dnf
      command -v dnf >/dev/null || manager=yum
      ;;
    *) fail "this distribution is none of Debian, Ubuntu, RHEL and its family, Amazon Linux and SUSE; install the packages by hand" ;;
  esac
  command -v "$manager" >/dev/null || fail "$manager is missing"
  if [ "$start" = yes ] && [ ! -d /run/systemd/system ]; then
    fail "systemd does not run here; with --no-start the agent is installed only"
  fi
}

installed() {
  if [ "$family" = deb ]; then
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
  else
    rpm -q "$1" >/dev/null 2>&1
  fi
}

all_installed() {
  if [ "$family" = deb ]; then
    # shellcheck disable=SC2016 # dpkg-query's own variables
    dpkg-query -W -f '${db:Status-Status} ${binary:Package}\n' | sed -n 's/^installed //p'
  else
    rpm -qa --qf '%{NAME}\n'
  fi | sort -u
}

manage() { # manage VERB PACKAGE...
  local verb=$1
  shift
  case "$manager/$verb" in
    apt-get/check) apt-get -q -s -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" ;;
    apt-get/install) DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install --no-install-recommends --allow-downgrades "$@" ;;
    apt-get/remove) DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 remove "$@" ;;
    apt-get/purge) DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 purge "$@" ;;
    zypper/check) zypper -n install --dry-run --allow-unsigned-rpm --no-recommends "$@" ;;
    zypper/install) zypper -n install --allow-unsigned-rpm --no-recommends --oldpackage "$@" ;;
    zypper/*) zypper -n remove "$@" ;;
    */check) "$manager" -y --setopt=tsflags=test --setopt=install_weak_deps=False install "$@" ;;
    */install) "$manager" -y --setopt=install_weak_deps=False install "$@" ;;
    *) "$manager" -y remove "$@" ;;
  esac
}

# quietly runs a command and shows what it said only if it fails.
quietly() {
  local said
  said=$("$@" 2>&1 </dev/null) || { printf '%s\n' "$said" >&2; return 1; }
}

# ---- checks ----

find_packages() {
  local name file
  files=()
  local names=(berth-agent)
  if [ "$with_berth" = yes ]; then names+=(berth); fi
  [ -d "$packages" ] || fail "$packages is no folder"
  packages=$(cd "$packages" && pwd)
  for name in "${names[@]}"; do
    if [ "$family" = deb ]; then
      file=$(find "$packages" -maxdepth 1 -name "${name}_*_$arch.deb" | sort -V | tail -n 1)
    else
      file=$(find "$packages" -maxdepth 1 -name "$name-[0-9]*.$rpm_arch.rpm" | sort -V | tail -n 1)
    fi
    [ -n "$file" ] || fail "there is no package file of $name for $arch in $packages"
    files+=("$file")
    if [ -f "$packages/SHA256SUMS" ]; then
      (cd "$packages" && grep -F "  ${file##*/}" SHA256SUMS | sha256sum -c --status -) ||
        fail "$file is not what SHA256SUMS says"
    fi
  done
}

# check_token reads the token, and leaves what it says to the agent to judge.
check_token() {
  local given
  for given in "--region $region" "--cluster $cluster" "--key-file $key_file" "--ca-file $ca_file"; do
    [ -z "${given#* }" ] || wrong "${given%% *} comes with the token; leave it out"
  done
  case "$token" in
    -) token=$(head -c 4096) ;;
    @*) token=$(head -c 4096 -- "${token#@}" 2>/dev/null) || fail "the file ${token#@} cannot be read" ;;
  esac
  token=$(printf %s "$token" | tr -d '[:space:]')
  [[ $token =~ ^berth1\.[A-Za-z0-9_-]+$ ]] || wrong "--join-token takes what 'berth token create' printed; it begins with berth1."
}

check_settings() {
  if [ -n "$token" ]; then
    check_token
    return
  fi
  [ -n "$region" ] || wrong "--region is missing"
  [[ $region =~ ^[a-z0-9-]+$ ]] || wrong "'$region' is no region"
  [[ $cluster =~ ^[A-Za-z0-9_:/-]*$ ]] || wrong "'$cluster' is no name of a cluster"
  case "$endpoint" in
    '' | https://?* | http://?*) ;;
    *) wrong "--endpoint is an URL that begins with https:// or http://, not '$endpoint'" ;;
  esac
  if [ -n "$endpoint" ] && [ -z "$key_file" ] && [ ! -f "$key" ]; then
    wrong "--key-file is missing: a cluster of one's own gives each agent a key"
  fi
  if [ -n "$key_file" ]; then
    [ "$(grep -cE '^(aws_access_key_id|aws_secret_access_key)[ =]' "$key_file" 2>/dev/null)" = 2 ] ||
      fail "$key_file is no AWS shared credentials file that can be read"
  fi
  [ -z "$fingerprint" ] || [ -n "$ca_file" ] || wrong "--ca-fingerprint goes with --ca-file"
  [ -z "$ca_file" ] || check_ca
}

check_ca() {
  grep -q -e '-----BEGIN CERTIFICATE-----' "$ca_file" 2>/dev/null || fail "$ca_file has no certificate in PEM"
  [ -n "$fingerprint" ] || return 0
  fingerprint=$(printf %s "$fingerprint" | tr -d ': ' | tr '[:upper:]' '[:lower:]')
  [[ $fingerprint =~ ^[0-9a-f]{64}$ ]] || wrong "--ca-fingerprint takes 64 hex digits, with or without colons"
  # A certificate's fingerprint is the sum of what its base64 says.
  local got
  got=$(awk '/-----BEGIN CERTIFICATE-----/ {on=1; next} /-----END CERTIFICATE-----/ {on=0; print ""} on {printf "%s", $0}' "$ca_file" |
    while read -r body; do printf %s "$body" | base64 -d 2>/dev/null | sha256sum | cut -d' ' -f1; done)
  [ "$(printf '%s\n' "$got" | wc -l)" = 1 ] || fail "$ca_file has several certificates; with --ca-fingerprint it has one"
  [ "$got" = "$fingerprint" ] || fail "the certificate in $ca_file has the fingerprint $got, not the one that is expected"
}

check_host() {
  local other
  for other in amazon-ecs-init ecs-init; do
    ! installed "$other" || fail "the package $other is installed; one host has one agent: remove it first"
  done
  [ -e /sys/fs/cgroup/cgroup.controllers ] || [ -d /sys/fs/cgroup/memory ] || fail "no cgroups are mounted at /sys/fs/cgroup"
  if ! command -v containerd >/dev/null && [ ! -S /run/containerd/containerd.sock ] && [ "$with_berth" = no ]; then
    fail "there is no containerd: install the distribution's, or use --with-berth for Berth's own"
  fi
  local free
  free=$(df -Pk /var/lib | awk 'NR == 2 {print int($4 / 1024)}')
  [ "$free" -ge 1024 ] || fail "/var/lib has $free MiB free; 1024 are needed"
  quietly manage check "${files[@]}" || fail "the packages cannot be installed; $manager said why"
}

# ---- changes, and how they are undone ----

undo=() # commands, the last first

undone() {
  local code=$? i
  trap - EXIT INT TERM
  if [ "$code" -ne 0 ] && [ ${#undo[@]} -gt 0 ]; then
    say "That failed; what was changed is undone." >&2
    for ((i = ${#undo[@]} - 1; i >= 0; i--)); do
      ${undo[i]} || say "install.sh: could not undo: ${undo[i]}" >&2
    done
  fi
  rm -rf "$saved"
  exit "$code"
}

# keep remembers a file, or that there is none, to be put back.
keep() {
  local at="$saved/${#undo[@]}"
  if [ -e "$1" ]; then
    cp -a "$1" "$at"
    undo+=("put_back $at $1")
  else
    undo+=("rm -f $1")
  fi
}
put_back() { mkdir -p "${2%/*}" && cp -a "$1" "$2"; }

make_dir() { # make_dir MODE DIR
  [ -d "$2" ] || { install -d -m "$1" "$2" && undo+=("rmdir --ignore-fail-on-non-empty $2"); }
}

install_packages() {
  local had=no before after new
  if installed berth-agent; then had=yes; fi
  before=$(all_installed)
  undo+=("remove_new $saved/before")
  printf '%s\n' "$before" >"$saved/before"
  quietly manage install "${files[@]}" || fail "$manager could not install the packages"
  after=$(all_installed)
  new=$(comm -13 <(printf '%s\n' "$before") <(printf '%s\n' "$after") | tr '\n' ' ')
  if [ "$had" = yes ]; then
    say "Installed ${files[*]##*/}; an earlier version was there, which a failure from here on does not bring back."
  else
    say "Installed: $new"
  fi
}

remove_new() {
  local new
  new=$(comm -13 "$1" <(all_installed))
  # shellcheck disable=SC2086 # names of packages have no spaces
  [ -z "$new" ] || quietly manage purge $new
}

# set_value NAME VALUE replaces or adds a setting; an empty value takes it away.
set_value() {
  local text
  text=$(grep -v "^[[:space:]]*$1=" "$config" || :)
  printf '%s\n' "$text" >"$config.new"
  [ -z "$2" ] || printf '%s=%s\n' "$1" "$2" >>"$config.new"
  chmod 0600 "$config.new"
  mv "$config.new" "$config"
}

configure() {
  make_dir 0755 /etc/ecs
  [ -e "$config" ] || : >"$config"
  set_value ECS_CLUSTER "$cluster"
  set_value AWS_DEFAULT_REGION "$region"
  set_value ECS_EXTERNAL true
  set_value ECS_BACKEND_HOST "$endpoint"
  if [ -n "$ca_file" ]; then
    make_dir 0755 /etc/berth
    keep "$ca"
    install -m 0644 "$ca_file" "$ca"
    set_value BERTH_CA_FILE "$ca"
  fi
  if [ -n "$key_file" ]; then
    make_dir 0755 /var/lib/berth
    make_dir 0700 /var/lib/berth/agent
    keep "$key"
    install -m 0600 "$key_file" "$key"
  fi
}

# join_cluster spends the token, unless this host is a member from an earlier run.
join_cluster() {
  if [ -f "$key" ] && [ -f /var/lib/berth/agent/state.id ]; then
    say "This host is a member of a cluster already; the token is not used."
    return
  fi
  make_dir 0755 /etc/berth
  make_dir 0755 /var/lib/berth
  make_dir 0700 /var/lib/berth/agent
  keep "$ca"
  keep "$key"
  keep "$key.json"
  local flags=()
  if [ -n "$endpoint" ]; then flags+=(-endpoint "$endpoint"); fi
  if [ -n "$fingerprint" ]; then flags+=(-ca-fingerprint "$fingerprint"); fi
  # By standard input: everybody can see the arguments of programs.
  printf '%s\n' "$token" | "$agent" join "${flags[@]}" - || fail "this host could not join"
}

start_agent() {
  local enabled
  enabled=$(systemctl is-enabled berth-agent.service 2>/dev/null || :)
  if [ "$enabled" != enabled ]; then undo+=("quietly systemctl disable --now berth-agent.service"); fi
  if [ "$with_berth" = yes ] && [ ! -S /run/containerd/containerd.sock ]; then
    quietly systemctl enable --now berth-containerd.service || fail "Berth's containerd did not start"
  elif [ ! -S /run/containerd/containerd.sock ]; then
    quietly systemctl enable --now containerd.service || fail "containerd did not start"
  fi
  quietly systemctl enable berth-agent.service || fail "the agent could not be enabled"
  quietly systemctl restart --no-block berth-agent.service || fail "the agent could not be started"
}

status() { systemctl show -p StatusText --value berth-agent.service; }

connected() {
  "$agent" -healthcheck >/dev/null 2>&1 && case "$(status)" in *'; connected to cluster'*) ;; *) return 1 ;; esac
}

await() {
  local end=$((SECONDS + wait))
  until connected; do
    if [ "$SECONDS" -ge "$end" ] || systemctl is-failed -q berth-agent.service; then
      journalctl -q -n 20 --no-pager -u berth-agent.service >&2 || :
      fail "the agent is not connected after $((SECONDS - end + wait)) s; its state: $(status)"
    fi
    sleep 1
  done
}

# ---- what is asked for ----

case "$mode" in
  verify)
    host
    installed berth-agent || fail "the package berth-agent is not installed"
    connected || fail "the agent is not connected; its state: $(status)"
    say "The agent works: $(status)"
    ;;
  uninstall)
    host
    names=()
    for name in berth-agent berth; do
      if installed "$name"; then names+=("$name"); fi
    done
    if [ "$dry_run" = yes ]; then
      say "Would remove: ${names[*]:-nothing}"
      exit 0
    fi
    if [ ${#names[@]} -gt 0 ]; then
      verb=remove
      if [ "$purge" = yes ]; then verb=purge; fi
      quietly manage "$verb" "${names[@]}" || fail "$manager could not remove ${names[*]}"
    fi
    if [ "$purge" = yes ]; then
      rm -f "$config" "$config.rpmsave" "$ca"
      for dir in /run/berth /var/lib/berth /var/log/berth; do
        if mountpoint -q "$dir"; then # a disk of its own, which stays
          find "$dir" -xdev -mindepth 1 -delete
        else
          rm -rf --one-file-system "$dir"
        fi
      done
      for dir in /etc/ecs /etc/berth; do
        [ ! -d "$dir" ] || rmdir --ignore-fail-on-non-empty "$dir"
      done
    fi
    say "Removed: ${names[*]:-nothing was installed}"
    ;;
  install)
    check_settings
    host
    find_packages
    check_host
    if [ -n "$token" ]; then
      say "This host can be made a member of the token's cluster with ${files[*]##*/}."
    else
      say "This host can be made an instance of cluster ${cluster:-default} (${endpoint:-AWS, $region}) with ${files[*]##*/}."
    fi
    if [ "$dry_run" = yes ]; then
      say "Nothing was changed (--dry-run)."
      exit 0
    fi
    saved=$(mktemp -d)
    trap undone EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    keep "$config"
    install_packages
    if [ -n "$token" ]; then join_cluster; else configure; fi
    if [ "$start" = yes ]; then
      start_agent
      # The agent starts after cloud-init, which waits for this script where it has run it.
      if [ "$(systemctl show -p ActiveState --value cloud-final.service 2>/dev/null)" = activating ]; then
        say "The agent starts when cloud-init has ended."
      else
        await
        say "The agent works: $(status)"
      fi
    else
      say "Start it with: systemctl enable --now berth-agent"
    fi
    undo=()
    ;;
esac
