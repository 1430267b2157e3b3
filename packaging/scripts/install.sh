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
       install.sh --region REGION --activation-id ID --activation-code CODE [flags]
       install.sh --verify | --uninstall [--purge]

Of the cluster:
  --join-token TOKEN      what "berth token create" printed: all that is needed of the
                          cluster; "-" reads it from standard input, @FILE from a file
  --endpoint URL          the cluster's API; without it, that of AWS in the region
  --region REGION         the region, part of every signature
  --activation-id ID      of an activation of AWS Systems Manager, for a cluster at AWS: the
                          host is registered there, as ECS Anywhere does, and gets its keys
                          from the amazon-ssm-agent
  --activation-code CODE  of that activation; "-" reads it from standard input, @FILE from a file
  --skip-registration     the amazon-ssm-agent of this host is registered already
  --cluster NAME          the ECS cluster to join, which must exist (default: the cluster
                          "default", which is made if it does not)
  --key-file FILE         the agent's key, in the form of an AWS shared credentials file
  --ca-file FILE          certificates, in PEM, that the cluster's is checked against
  --ca-fingerprint SHA256 what the certificate of --ca-file must have, or the token must
                          name, in hex

Of this host:
  --packages DIR          folder of the package files and SHA256SUMS (default: the script's)
  --enable-gpu            offer the GPUs of this host to tasks
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
warn() { say "$@" >&2; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
wrong() { printf 'install.sh: %s; see install.sh --help\n' "$*" >&2; exit 2; }

endpoint='' region='' cluster='' key_file='' ca_file='' fingerprint='' token=''
activation_id='' activation_code='' ssm=no gpu=''
packages=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
with_berth=no start=yes dry_run=no mode=install purge=no wait=120

while [ $# -gt 0 ]; do
  case "$1" in
    --endpoint | --ecs-endpoint | --region | --cluster | --key-file | --ca-file | --ca-fingerprint | --join-token | \
      --packages | --wait | --activation-id | --activation-code)
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
        --activation-id) activation_id=$2 ;;
        --activation-code) activation_code=$2 ;;
        --wait) wait=$2 ;;
      esac
      shift 2
      continue
      ;;
    --skip-registration) ssm=registered ;;
    --enable-gpu) gpu=true ;;
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
kept=/var/lib/berth/agent/updates/kept # where the agent looks for a version to go back to
ssm_data=/var/lib/amazon/ssm
ssm_keys=/root/.aws/credentials # what the amazon-ssm-agent writes and renews

# ---- what this host is ----

host() {
  [ "$(id -u)" = 0 ] || fail "this needs root; try: sudo $0 …"
  local tool
  for tool in awk base64 comm cp cut df find grep head install mktemp mv sed sha256sum sort tail tr; do
    command -v "$tool" >/dev/null || fail "the program $tool is missing; install it first"
  done
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

version() { # version PACKAGE: that is installed
  if [ "$family" = deb ]; then
    dpkg-query -W -f '${Version}' "$1"
  else
    rpm -q --qf '%{VERSION}' "$1"
  fi
}

version_in() { # version_in FILE
  if [ "$family" = deb ]; then
    dpkg-deb -f "$1" Version
  else
    rpm -qp --nosignature --qf '%{VERSION}' "$1"
  fi
}

installed() {
  if [ "$family" = deb ]; then
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
  else
    rpm -q "$1" >/dev/null 2>&1
  fi
}

# all_known lists what the package manager knows as "NAME STATUS", what is installed by half
# included.
all_known() {
  if [ "$family" = deb ]; then
    # shellcheck disable=SC2016 # dpkg-query's own variables
    dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' | sed '/ not-installed$/d'
  else
    rpm -qa --qf '%{NAME} installed\n'
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
    */downgrade) "$manager" -y --setopt=install_weak_deps=False downgrade "$@" ;;
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
    find_former "$name" "$file"
  done
  if [ "$ssm" = yes ]; then find_ssm; fi
}

# find_former finds the package of a version that is installed, which a failure brings back.
former=()
find_former() { # find_former NAME FILE
  installed "$1" || return 0
  local has at
  has=$(version "$1")
  [ "$has" != "$(version_in "$2")" ] || return 0
  for at in "$packages/${1}_${has}_$arch.$family" "$kept/$1-$has.$family" "$packages/$1-$has"-*".$rpm_arch.$family"; do
    if [ -f "$at" ]; then
      former+=("$at")
      return 0
    fi
  done
  fail "$1 $has is installed, and its package, which is needed to go back to when something fails, is neither in $packages nor in $kept; put it there, or use $manager yourself"
}

# ssm_unit is the unit of the amazon-ssm-agent, which may be a snap.
ssm_unit() {
  if [ -d /snap/amazon-ssm-agent ]; then
    printf snap.amazon-ssm-agent.amazon-ssm-agent.service
  else
    printf amazon-ssm-agent.service
  fi
}

ssm_registered() { grep -q instanceID "$ssm_data/Vault/Store/RegistrationKey" 2>/dev/null; }

ssm_program() { command -v amazon-ssm-agent || ls /snap/amazon-ssm-agent/current/amazon-ssm-agent 2>/dev/null; }

find_ssm() {
  local file kind=debian_$arch
  if ssm_program >/dev/null; then return 0; fi
  [ "$family" = deb ] || kind=linux_$arch
  file=$packages/amazon-ssm-agent.$family
  [ -f "$file" ] || file=$packages/$kind/amazon-ssm-agent.$family
  [ -f "$file" ] || fail "the amazon-ssm-agent is not installed; put its package into $packages, from https://s3.$region.amazonaws.com/amazon-ssm-$region/latest/$kind/amazon-ssm-agent.$family"
  files+=("$file")
}

# secret reads what is given as itself, in a file, or by standard input.
secret() {
  local text=$1
  case "$text" in
    -) text=$(head -c 4096) ;;
    @*) text=$(head -c 4096 -- "${text#@}" 2>/dev/null) || fail "the file ${text#@} cannot be read" ;;
  esac
  printf %s "$text" | tr -d '[:space:]'
}

# check_activation is for clusters at AWS.
check_activation() {
  if [ -n "$activation_id$activation_code" ]; then
    [ "$ssm" = no ] || wrong "--skip-registration takes no activation"
    [ -n "$activation_id" ] || wrong "--activation-id is missing"
    [ -n "$activation_code" ] || wrong "--activation-code is missing"
    activation_code=$(secret "$activation_code")
    [[ $activation_id =~ ^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$ ]] || wrong "'$activation_id' is no id of an activation, such as 01234567-89ab-cdef-0123-456789abcdef"
    [[ $activation_code =~ ^[A-Za-z0-9+/=]{20,250}$ ]] || wrong "--activation-code takes what aws ssm create-activation printed beside the id"
    ssm=yes
  fi
  [ "$ssm" = no ] || [ -z "$key_file" ] || wrong "--key-file does not go with an activation: the amazon-ssm-agent renews the keys"
}

# check_token reads the token, and leaves what it says to the agent to judge.
check_token() {
  local given
  for given in "--region $region" "--cluster $cluster" "--key-file $key_file" "--ca-file $ca_file" "--activation-id $activation_id"; do
    [ -z "${given#* }" ] || wrong "${given%% *} comes with the token; leave it out"
  done
  token=$(secret "$token")
  [[ $token =~ ^berth1\.[A-Za-z0-9_-]+$ ]] || wrong "--join-token takes what 'berth token create' printed; it begins with berth1."
}

check_settings() {
  if [ -n "$token" ]; then
    check_token
    return
  fi
  [ -n "$region" ] || wrong "--region is missing"
  check_activation
  [[ $region =~ ^[a-z0-9-]+$ ]] || wrong "'$region' is no region"
  [[ $cluster =~ ^[A-Za-z0-9_:/-]*$ ]] || wrong "'$cluster' is no name of a cluster"
  case "$endpoint" in
    '' | https://?* | http://?*) ;;
    *) wrong "--endpoint is an URL that begins with https:// or http://, not '$endpoint'" ;;
  esac
  if [ -n "$endpoint" ] && [ -z "$key_file" ] && [ ! -f "$key" ] && [ "$ssm" = no ]; then
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
  if [ "$ssm" = registered ]; then
    systemctl is-enabled -q "$(ssm_unit)" 2>/dev/null || fail "$(ssm_unit) is not enabled, so this host is not registered; use --activation-id and --activation-code"
  fi
  if [ -n "$gpu" ]; then quietly nvidia-smi || fail "nvidia-smi does not work, so there are no GPUs to offer"; fi
  local free
  free=$(df -Pk /var/lib | awk 'NR == 2 {print int($4 / 1024)}')
  [ "$free" -ge 1024 ] || fail "/var/lib has $free MiB free; 1024 are needed"
  quietly manage check "${files[@]}" || fail "the packages cannot be installed; $manager said why"
}

# ---- changes, and how they are undone ----

undo=()       # commands, the last first
put_aside=()  # files that are the former contents of others
changed=no

on_failure() { undo+=("$(printf '%q ' "$@")"); }

undone() {
  local code=$? i
  trap - EXIT
  trap '' HUP INT TERM # half of it would be worse
  if [ "$code" -ne 0 ] && [ ${#undo[@]} -gt 0 ]; then
    [ "$changed" = no ] || say "That failed; what was changed is undone." >&2
    for ((i = ${#undo[@]} - 1; i >= 0; i--)); do
      eval "${undo[i]}" || say "install.sh: could not undo: ${undo[i]}" >&2
    done
  fi
  [ ${#put_aside[@]} -eq 0 ] || rm -f "${put_aside[@]}"
  rm -rf "$saved"
  exit "$code"
}

# keep remembers a file, or that there is none, to be put back. It stays beside its place,
# so that putting it back takes no room on the disk.
keep() {
  if [ -e "$1" ]; then
    put_aside+=("$1.berth-saved")
    cp -a "$1" "$1.berth-saved"
    on_failure mv -f "$1.berth-saved" "$1"
  else
    on_failure rm -f "$1"
  fi
}

make_dir() { # make_dir MODE DIR
  [ -d "$2" ] || install -d -m "$1" "$2"
}

# note_host remembers what of this host a failure brings back, which the steps do not.
note_host() {
  local dir unit
  if systemctl is-active -q berth-agent.service 2>/dev/null; then on_failure quietly systemctl restart --no-block berth-agent.service; fi
  # What packages leave when they are removed, and what the agent makes when it starts.
  for dir in /etc/ecs /etc/berth /var/lib/berth /var/log/berth /run/berth /var/lib/berth/agent /var/log/berth/tasks /var/lib/amazon "$ssm_data"; do
    [ -d "$dir" ] || on_failure rm -rf --one-file-system "$dir"
  done
  keep "$config"
  on_failure rm -f "$config.new" "$config.rpmsave" "$config.dpkg-new" "$config.dpkg-dist"
  for unit in containerd.service berth-containerd.service; do
    systemctl is-enabled -q "$unit" 2>/dev/null || on_failure unless_gone disable "$unit"
    systemctl is-active -q "$unit" 2>/dev/null || on_failure unless_gone stop "$unit"
  done
}

unless_gone() { ! systemctl cat "$2" >/dev/null 2>&1 || quietly systemctl "$1" "$2"; }

install_packages() {
  local new file name
  all_known >"$saved/before"
  on_failure remove_new
  changed=yes
  if [ ${#former[@]} -gt 0 ]; then on_failure quietly manage install "${former[@]}"; fi
  quietly manage install "${files[@]}" || fail "$manager could not install the packages"
  for file in "${files[@]}"; do
    name=${file##*/}
    name=${name%%[_-][0-9]*}
    name=${name%."$family"}
    installed "$name" || fail "$manager says that it has installed $name, and it is not there"
    if [ "$(version "$name")" != "$(version_in "$file")" ]; then # dnf and yum go back only when they are told to
      quietly manage downgrade "$file" || fail "$manager could not install $file"
    fi
  done
  new=$(comm -13 "$saved/before" <(all_known) | cut -d' ' -f1 | tr '\n' ' ')
  say "Installed: ${new:-${files[*]##*/}}"
}

# remove_new removes what was not there before; of what had left its settings, those stay.
remove_new() {
  local name status was verb
  while read -r name status; do
    was=$(sed -n "s/^$name //p" "$saved/before")
    [ "$status" != "$was" ] || continue
    case "$was" in
      '') verb=purge ;;
      config-files) verb=remove ;;
      *) continue ;;
    esac
    quietly manage "$verb" "$name" || quietly by_force "$verb" "$name" || return 1
  done < <(all_known)
}

# by_force removes what is installed by half and what the package manager stumbles over.
by_force() {
  if [ "$family" = deb ]; then
    dpkg --force-remove-reinstreq "--$1" "$2"
  else
    rpm -e --noscripts "$2"
  fi
}

# keep_packages keeps the agent's package, which the next version may be taken back to.
keep_packages() {
  if ! make_dir 0700 "$kept" || ! install -m 0600 "${files[0]}" "$kept/berth-agent-$(version_in "${files[0]}").$family"; then
    say "The package could not be kept in $kept; updates by the cluster will fetch it."
  fi
}

# register_ssm registers this host as a managed node, as ECS Anywhere does.
register_ssm() {
  local unit program
  unit=$(ssm_unit)
  if ssm_registered; then
    say "This host is registered with AWS Systems Manager already; the activation is not used."
  else
    program=$(ssm_program) || fail "the amazon-ssm-agent is not on the PATH"
    if systemctl is-active -q "$unit" 2>/dev/null; then on_failure unless_gone start "$unit"; fi
    systemctl is-enabled -q "$unit" 2>/dev/null || on_failure unless_gone disable "$unit"
    quietly systemctl stop "$unit" || :
    if [ -d "$ssm_data" ]; then
      cp -a "$ssm_data" "$saved/ssm"
      on_failure bring_back_ssm
    fi
    on_failure unless_gone stop "$unit"
    [ -e "$ssm_keys" ] || on_failure rm -f "$ssm_keys"
    [ -d "${ssm_keys%/*}" ] || on_failure rm -rf "${ssm_keys%/*}"
    quietly "$program" -register -code "$activation_code" -id "$activation_id" -region "$region" </dev/null ||
      fail "the activation was refused, or AWS cannot be reached"
    on_failure warn "The activation was used; remove the managed node with: aws ssm deregister-managed-instance"
  fi
  quietly systemctl enable "$unit" || fail "$unit could not be enabled"
  if [ "$start" = yes ]; then quietly systemctl start "$unit" || fail "$unit does not start"; fi
}
bring_back_ssm() { rm -rf --one-file-system "$ssm_data" && cp -a "$saved/ssm" "$ssm_data"; }

# set_value NAME VALUE replaces or adds a setting; an empty value takes it away.
set_value() {
  local text
  text=$(grep -v "^[[:space:]]*$1=" "$config" || :)
  printf '%s' "${text:+$text$'\n'}" >"$config.new"
  [ -z "$2" ] || printf '%s=%s\n' "$1" "$2" >>"$config.new"
  chmod 0600 "$config.new"
  mv "$config.new" "$config"
}

configure() {
  make_dir 0755 /etc/ecs
  changed=yes
  [ -e "$config" ] || : >"$config"
  set_value ECS_CLUSTER "$cluster"
  set_value AWS_DEFAULT_REGION "$region"
  set_value ECS_EXTERNAL true
  set_value ECS_BACKEND_HOST "$endpoint"
  [ -z "$gpu" ] || set_value ECS_ENABLE_GPU_SUPPORT true
  [ "$ssm" = no ] || set_value BERTH_KEY_FILE "$ssm_keys"
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
  if [ "$enabled" != enabled ]; then on_failure unless_gone disable berth-agent.service; fi
  if ! systemctl is-active -q berth-agent.service; then on_failure unless_gone stop berth-agent.service; fi
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
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    note_host
    install_packages
    if [ "$ssm" = yes ]; then register_ssm; fi
    if [ -n "$token" ]; then join_cluster; else configure; fi
    if [ -n "$gpu" ] && [ -n "$token" ]; then set_value ECS_ENABLE_GPU_SUPPORT true; fi
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
    keep_packages
    ;;
esac
