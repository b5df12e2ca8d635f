/** The systemd units of an instance, as text. Pure. See systemd.unit(5), systemd.service(5), systemd.kill(5). */
import type { Instance } from './instance.ts'

export type UnitOptions = { home: string; instance: Instance; listen?: string | undefined; config?: string | undefined }

/** Guests are given this long in all when the host shuts down, seconds; systemd waits a little longer. */
export const GUESTS_TOTAL_S = 300

export function unitNames(instance: Instance): { daemon: string; guests: string } {
  const suffix = instance.name === 'default' ? '' : `-${instance.name}`
  return { daemon: `wadahd${suffix}.service`, guests: `wadah-guests${suffix}.service` }
}

/** One word of a command line in a unit: `%` and `$` mean something there. */
export function unitWord(text: string): string {
  const escaped = text.replaceAll('%', '%%').replaceAll('$', () => '$$')
  return /^[A-Za-z0-9_@%+=:,./$-]+$/.test(escaped)
    ? escaped
    : `"${escaped.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`
}
const line = (words: readonly string[]) => words.map(unitWord).join(' ')

/**
 * The daemon. `KillMode=process`: QEMU and dnsmasq are processes of their own, which a restart, an upgrade or a crash must leave alone.
 * No option that gives it a mount namespace: QEMU would live on in one that the next daemon does not have, without pools mounted since.
 */
export function daemonUnit(o: UnitOptions): string {
  const { instance } = o
  const argv = [
    `${o.home}/bin/wadahd`,
    ...['--instance', instance.name, '--data', instance.data, '--socket', instance.socket],
    ...(o.listen === undefined ? [] : ['--listen', o.listen]),
    ...(o.config === undefined ? [] : ['--config', o.config]),
  ]
  return `# Written by: wadah init
[Unit]
Description=Wadah, virtual servers on this machine${instance.name === 'default' ? '' : ` (${instance.name})`}
Wants=network-online.target
After=network-online.target local-fs.target remote-fs.target
StartLimitIntervalSec=120
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=all
ExecStart=${line(argv)}
TimeoutStartSec=120
TimeoutStopSec=60
Restart=on-failure
RestartSec=3
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=65536
OOMScoreAdjust=-500
KeyringMode=private
RestrictRealtime=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
`
}

/**
 * Nothing but its end: systemd ends units in the reverse of their order, so guests are shut down while the daemon, the network and
 * remote file systems are still there. It does not end with the daemon: a restart of that one must leave the guests alone.
 */
export function guestsUnit(o: UnitOptions, withStop = true): string {
  const { daemon } = unitNames(o.instance)
  const stop = [
    `${o.home}/bin/wadah`,
    '--socket',
    o.instance.socket,
    'host',
    'stop-guests',
    '--yes',
    '--total',
    String(GUESTS_TOTAL_S),
  ]
  return `# Written by: wadah init
[Unit]
Description=Wadah, guests shut down before the host does${o.instance.name === 'default' ? '' : ` (${o.instance.name})`}
Wants=${daemon}
After=${daemon} network-online.target local-fs.target remote-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
${withStop ? `ExecStop=${line(stop)}\n` : ''}TimeoutStopSec=${GUESTS_TOTAL_S + 120}

[Install]
WantedBy=multi-user.target
`
}
