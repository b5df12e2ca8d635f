#!/bin/sh
# Boots the systemd of this machine in a container over a copy-on-write view of its own files. Called in a mount namespace of its own.
# $1: work folder (upper, work, root, out, data)   $2: the repository   $3: cache of image builds   $4: seconds
set -eu
dir=$1 repo=$2 cache=$3 limit=$4
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
# Its own identity, and none of the services that this machine happens to have.
: >"$dir/root/etc/machine-id"
if [ ! -e "$dir/out/booted" ]; then
  rm -rf "$dir/root/etc/systemd/system" "$dir/root/var/lib/wadah" "$dir/root/var/cache/wadah"
  mkdir -p "$dir/root/etc/systemd/system/multi-user.target.wants" "$dir/root/var/lib/wadah" "$dir/root/var/cache/wadah"
  cp "$repo/tests/kit/systemd/wadah-test.service" "$dir/root/etc/systemd/system/"
  ln -s ../wadah-test.service "$dir/root/etc/systemd/system/multi-user.target.wants/"
  touch "$dir/out/booted"
fi
# A host without systemd has no scope to ask for.
keep=
[ -d /run/systemd/system ] || keep=--keep-unit
# Its control groups lie under one of our own, which is gone afterwards.
for h in systemd unified; do
  [ -z "$keep" ] || [ ! -d "/sys/fs/cgroup/$h" ] || { mkdir -p "/sys/fs/cgroup/$h/wadah-test-systemd"; echo $$ >"/sys/fs/cgroup/$h/wadah-test-systemd/cgroup.procs"; }
done
exec timeout --signal=KILL "$limit" systemd-nspawn --quiet --directory="$dir/root" --register=no $keep --private-network \
  --machine=wadah-test --link-journal=no --console=pipe --bind="$dir/out:/out" --bind="$dir/data:/var/lib/wadah" \
  --bind="$cache:/var/cache/wadah" --bind-ro="$repo:$repo" --boot systemd.unit=multi-user.target
