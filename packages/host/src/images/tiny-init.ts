/**
 * The scripts inside the tiny test guest. Kernel command line knobs:
 *   wadah.hostname=NAME   name, also sent by DHCP (default `tiny`)
 *   wadah.ip=A.B.C.D/N    static address of eth0 in place of DHCP; wadah.gw=A.B.C.D its router
 *   wadah.tick=MS         print `TICK n uptime` on the serial port every MS milliseconds (1 stands for 100)
 *   wadah.dirty=MIB       keep rewriting MIB mebibytes of memory with new content
 */

/** Modules of the guest, wanted names only; what they need comes by itself. */
export const TINY_MODULES: readonly string[] = [
  'virtio_pci',
  'virtio_net',
  'virtio_blk',
  'virtio_scsi',
  'sd_mod',
  'virtio_console',
  'virtio_balloon',
  'qemu_fw_cfg',
  'virtio-rng',
  'evdev',
  'button',
  'virtio_mmio',
]

/** As with images that have a disk, see DISK_CMDLINE. */
export const TINY_CMDLINE = 'console=ttyS0 quiet no_timer_check cryptomgr.notests memhp_default_state=online'

/** What the guest prints on its first serial port once devices are there and the shell is about to answer. */
export const TINY_READY = 'WADAH-TINY-READY'

export const TINY_INIT = `#!/bin/sh
export PATH=/bin HOME=/
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /run /tmp
mount -t devpts devpts /dev/pts
while read -r m; do insmod "/modules/$m"; done </modules/order
NAME=tiny IP= GW= TICK= DIRTY=
for word in $(cat /proc/cmdline); do
  case "$word" in
    wadah.hostname=*) NAME="\${word#*=}" ;;
    wadah.ip=*) IP="\${word#*=}" ;;
    wadah.gw=*) GW="\${word#*=}" ;;
    wadah.tick=*) TICK="\${word#*=}" ;;
    wadah.dirty=*) DIRTY="\${word#*=}" ;;
  esac
done
hostname "$NAME"
ip link set lo up

# The power button: the first event from it turns the machine off at once. Opened before anything is said, so that no press is lost.
for d in /sys/class/input/event*; do
  [ "$(cat "$d/device/name" 2>/dev/null)" = "Power Button" ] || continue
  exec 4<"/dev/input/\${d##*/}"
  (head -c 24 <&4 >/dev/null && poweroff -f) &
done
echo "${TINY_READY} $(uname -r)" >/dev/ttyS0

echo "<h1>$NAME</h1>" >/www/index.html
# A warm template, which has an empty seed: in its clones the guest part sets address and router, and nothing else may.
WARM=
SEED="$(cat /sys/firmware/qemu_fw_cfg/by_name/opt/wadah/seed/raw 2>/dev/null)"
for p in /sys/class/virtio-ports/*; do
  [ "$(cat "$p/name" 2>/dev/null)" = org.wadah.identity.0 ] && [ -x /agent/identity ] && [ -z "$SEED" ] && WARM=1
done
for d in /sys/class/net/eth*; do
  [ -e "$d" ] || continue
  nic="\${d##*/}"
  ip link set "$nic" up
  if [ "$nic" = eth0 ] && [ -n "$IP" ]; then
    /dhcp static "$nic" "$IP" "$GW" &
  elif [ -z "$WARM" ]; then
    (until udhcpc -i "$nic" -s /dhcp -x "hostname:$NAME" -t 8 -T 1 -n -q >/dev/null 2>&1; do sleep 3; done) &
  fi
done
httpd -p 80 -h /www

[ -x /agent/run ] && (while :; do /agent/run >/dev/null 2>&1; sleep 1; done) &
[ -n "$WARM" ] && /agent/lib/ld-linux-x86-64.so.2 --library-path /agent/lib /agent/perl /agent/identity /agent/settle '' /www/index.html &
if [ -n "$TICK" ]; then
  [ "$TICK" = 1 ] && TICK=100
  (n=0
  while :; do
    n=$((n + 1))
    read -r up _ </proc/uptime
    echo "TICK $n $up"
    usleep "\${TICK}000"
  done >/dev/ttyS0) &
fi
if [ -n "$DIRTY" ]; then
  mkdir -p /dirty
  mount -t tmpfs tmpfs /dirty
  (while :; do dd if=/dev/urandom of=/dirty/data bs=1M count="$DIRTY" conv=notrunc 2>/dev/null; done) &
fi
export PS1='tiny# '
while :; do setsid cttyhack sh </dev/ttyS0 >/dev/ttyS0 2>&1; done
`

/** Called by udhcpc with the lease in the environment, or by init with a static address. */
export const TINY_DHCP = `#!/bin/sh
case "$1" in
  static)
    interface="$2" address="$3" router="$4"
    ip addr add "$address" dev "$interface"
    ;;
  bound | renew)
    address="$ip/\${mask:-24}"
    ip addr flush dev "$interface"
    ip addr add "$address" dev "$interface"
    ;;
  deconfig)
    ip addr flush dev "$interface"
    exit 0
    ;;
  *) exit 0 ;;
esac
for r in $router; do ip route add default via "$r" dev "$interface" && break; done
[ -n "$domain" ] && echo "search $domain" >/etc/resolv.conf
for d in $dns; do echo "nameserver $d" >>/etc/resolv.conf; done
echo "WADAH-TINY-IP $interface $address" >/dev/ttyS0
`

/** http://guest/cgi-bin/uptime: seconds since the guest booted; changes with every request. */
export const TINY_UPTIME_CGI = `#!/bin/sh
read -r up _ </proc/uptime
printf 'Content-Type: text/plain\\r\\n\\r\\n%s\\n' "$up"
`

/** Starts the real qemu-guest-agent when the VM has its channel. */
export const TINY_AGENT_RUN = `#!/bin/sh
for p in /sys/class/virtio-ports/*; do
  [ "$(cat "$p/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
  exec /agent/lib/ld-linux-x86-64.so.2 --library-path /agent/lib /agent/qemu-ga \\
    -m virtio-serial -p "/dev/\${p##*/}" -t /run -f /run/qemu-ga.pid
done
sleep 3600
`

/** Run by the guest part in a template: until the guest agent has started too. */
export const TINY_SETTLE = `#!/bin/sh
sleep 2
`

/** What the guest agent calls for guest-shutdown, with -P, -r or -H first. */
export const TINY_SHUTDOWN = `#!/bin/sh
case "$1" in
  -r) reboot -f ;;
  *) poweroff -f ;;
esac
`
