/** Runs inside the container, as a service of its systemd. What it sees goes to /out/boot-N.json; then the machine is switched off. */
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'

const [repo, boot] = process.argv.slice(2)
const seen = {}
const sh = (program, ...argv) =>
  execFileSync(program, argv, { encoding: 'utf8', env: { ...process.env, WADAH_LANG: 'en' } }).trim()
const wadah = (...argv) => {
  const { status, stdout, stderr } = spawnSync(`${repo}/bin/wadah`, argv, { encoding: 'utf8', timeout: 120_000 })
  if (status !== 0) throw new Error(`wadah ${argv.join(' ')}: ${status}\n${stdout}${stderr}`)
  return stdout.trim()
}
const json = (...argv) => JSON.parse(wadah(...argv, '--json'))
const show = (unit, what) => sh('systemctl', 'show', '--value', '-p', what, unit)
const dnsmasq = () => spawnSync('pgrep', ['-x', 'dnsmasq'], { encoding: 'utf8' }).stdout.trim()
const alive = (pid) => existsSync(`/proc/${pid}`)
async function until(what, ok, timeout_ms = 90_000) {
  const end = performance.now() + timeout_ms
  for (;;) {
    let value
    try {
      value = ok()
    } catch {
      // Not yet.
    }
    if (value) return value
    if (performance.now() > end) throw new Error(`gave up waiting for ${what}`)
    await new Promise((again) => setTimeout(again, 200))
  }
}
const vm = () => json('vm', 'show', 'one')
const running = () => until('the VM to run', () => vm().status.state === 'running' && vm())
const snapshot = () => ({ qemu: vm().status.pid, dnsmasq: dnsmasq(), daemon: show('wadahd', 'MainPID') })

/** What udev does on a machine. */
function tun() {
  mkdirSync('/dev/net', { recursive: true })
  if (!existsSync('/dev/net/tun')) sh('mknod', '-m', '0666', '/dev/net/tun', 'c', '10', '200')
}

async function first() {
  tun()
  seen.init = json('init')
  seen.again = json('init')
  seen.enabled = sh('systemctl', 'is-enabled', 'wadahd', 'wadah-guests').split('\n')
  seen.active = sh('systemctl', 'is-active', 'wadahd', 'wadah-guests').split('\n')
  seen.up = json('up').started
  wadah('image', 'build', 'tiny')
  wadah('vm', 'create', 'one', '--image', 'tiny', '--autostart', '--start')
  await until('the guest', () => vm().status.agent === 'connected')
  seen.network = json('network', 'show', 'default').kind
  seen.begin = snapshot()
  seen.oom = [seen.begin.daemon, seen.begin.qemu].map((pid) =>
    readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8').trim(),
  )

  sh('systemctl', 'restart', 'wadahd')
  await running()
  seen.restarted = snapshot()

  sh('systemctl', 'kill', '--signal=KILL', '--kill-who=main', 'wadahd')
  await until('systemd to start it again', () => show('wadahd', 'NRestarts') !== '0' && json('vm', 'list'))
  await running()
  seen.killed = snapshot()

  upgrade()
  await until('the new daemon', () => show('wadahd', 'MainPID') !== seen.killed.daemon && json('vm', 'list'))
  await running()
  seen.upgraded = {
    ...snapshot(),
    runs: show('wadahd', 'ExecStart'),
    outdated: json('host', 'check').outdated,
  }

  seen.removed = json('init', '--remove')
  seen.afterRemove = {
    qemu: alive(seen.begin.qemu),
    dnsmasq: dnsmasq(),
    unit: existsSync('/etc/systemd/system/wadahd.service'),
  }
  wadah('init')
  await running()
  seen.again2 = snapshot()
}

/** As dpkg does it: a new file in the place of QEMU's; and Wadah comes from another folder. */
function upgrade() {
  const qemu = '/usr/bin/qemu-system-x86_64'
  sh('cp', '-p', qemu, `${qemu}.dpkg-new`)
  sh('mv', `${qemu}.dpkg-new`, qemu)
  sh('mkdir', '-p', '/opt/wadah')
  for (const part of ['bin', 'packages', 'package.json', 'recipes']) sh('cp', '-a', `${repo}/${part}`, '/opt/wadah/')
  sh('ln', '-s', `${repo}/node_modules`, '/opt/wadah/node_modules')
  seen.upgrade = JSON.parse(sh('/opt/wadah/bin/wadah', 'init', '--json'))
}

async function second() {
  // Started by systemd alone, and the VM by the daemon.
  const jobs = await until('the VMs to start with the host', () => {
    const { items } = json('job', 'list')
    return items.find((j) => j.kind === 'host.autostart' && j.state === 'done') && items
  })
  seen.jobs = jobs.map((j) => ({ kind: j.kind, state: j.state, result: j.result }))
  seen.vm = await running()
  seen.check = json('host', 'check').items.find((i) => i.name === 'systemd')
}

try {
  await (boot === '1' ? first() : second())
} catch (error) {
  seen.error = String(error?.stack ?? error)
}
writeFileSync(`/out/boot-${boot}.json`, JSON.stringify(seen, null, 2))
sh('systemctl', 'poweroff')
