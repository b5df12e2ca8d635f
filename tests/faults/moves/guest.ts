/**
 * What runs in the guest, and what is to be true of it. A program counts; each count, with the guest's clock, goes into a chain of hashes and
 * onto the disk first, into RAM then. Two guests that write by turns, an old one that goes on over the disk of a newer one, RAM or disk that
 * lost a write: each breaks the chain or parts the two.
 */
import { createHash } from 'node:crypto'
import { endpoints } from '@wadah/api/endpoints/all'
import { apiOf } from './lab.ts'

export const VM = 'mover'
const SLOTS = 64

/** What a local disk has besides, so that it takes a while to go over: this many MiB after the first one, and their sum after the slots. */
const FILL_MIB = 48
const FILLED = `dd if=/dev/vda bs=512 skip=${SLOTS} count=1 2>/dev/null | tr -d '\\0 \\n'`
const FILL_SUM = `dd if=/dev/vda bs=1M skip=1 count=${FILL_MIB} 2>/dev/null | md5sum | cut -c1-32`
const FILL = `
[ -n "$(${FILLED})" ] && exit
dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=${FILL_MIB} conv=notrunc,fsync 2>/dev/null
printf '%-511s\\n' "$(${FILL_SUM})" | dd of=/dev/vda bs=512 seek=${SLOTS} conv=notrunc,fsync 2>/dev/null`

const WRITER = `
mkdir -p /j; rm -f /j/* /stop /stopped
dd if=/dev/zero of=/dev/vda bs=512 count=${SLOTS} conv=notrunc,fsync 2>/dev/null
dd if=/dev/urandom of=/blob bs=65536 count=64 2>/dev/null; md5sum </blob >/blob.sum
n=0; h=0
while [ ! -e /stop ]; do
  n=$((n+1)); read up rest </proc/uptime
  h=$(echo "$h $n $up" | md5sum | cut -c1-16)
  i=$((n % ${SLOTS}))
  printf '%-511s\\n' "$n $up $h" | dd of=/dev/vda bs=512 seek=$i conv=notrunc,fsync 2>/dev/null
  echo "$n $up $h" >/j/$i
  usleep 150000
done
echo yes >/stopped`

const LOOK = `
echo >/stop; [ -d /j ] && for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do [ -e /stopped ] && break; sleep 1; done
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=512 count=${SLOTS} 2>/dev/null | tr -d '\\0' | tr -s ' '
echo ===; cat /j/* 2>/dev/null
echo ===; cat /proc/sys/kernel/random/boot_id /blob.sum 2>/dev/null; md5sum </blob 2>/dev/null; [ -e /stopped ] && echo stopped
echo ===; f=$(${FILLED}); [ -n "$f" ] && { echo "$f"; ${FILL_SUM}; }`

export async function exec(via: number, script: string, timeout_ms = 60_000): Promise<string> {
  const argv = ['/bin/busybox', 'sh', '-c', script]
  const ran = await apiOf(via).call(endpoints.vms.exec, { params: { vm: VM }, body: { argv, timeout_ms } })
  return Buffer.from(ran.stdout, 'base64').toString('utf8')
}

/** `isFilled`: the disk is to be large. */
export async function beginWriting(via: number, isFilled: boolean): Promise<string> {
  if (isFilled) await exec(via, FILL)
  await exec(via, `cat >/w.sh <<'END'\n${WRITER}\nEND\n(setsid sh /w.sh </dev/null >/dev/null 2>&1 &)`)
  return bootId(via)
}
export const bootId = async (via: number) => (await exec(via, 'cat /proc/sys/kernel/random/boot_id')).trim()
export const count = async (via: number) => Number((await exec(via, 'cat /j/* | sort -n | tail -n 1')).split(' ')[0])

type Slot = { n: number; up: string; h: string }
const parse = (text: string): Slot[] =>
  text
    .split('\n')
    .map((line) => line.trim().split(' '))
    .filter((w) => w.length === 3)
    .map(([n, up, h]) => ({ n: Number(n), up: up ?? '', h: h ?? '' }))
    .toSorted((a, b) => a.n - b.n)

/** Pure: what is wrong with the slots of a disk, one chain without a hole. */
export function brokenChain(slots: readonly Slot[]): string | undefined {
  if (slots.length === 0) return 'nothing is on the disk'
  for (let i = 1; i < slots.length; i += 1) {
    const [before, now] = [slots[i - 1] as Slot, slots[i] as Slot]
    if (now.n !== before.n + 1) return `count ${before.n} is followed by ${now.n}`
    const h = createHash('md5').update(`${before.h} ${now.n} ${now.up}\n`).digest('hex').slice(0, 16)
    if (h !== now.h) return `count ${now.n} was not written by who wrote ${before.n}`
  }
  return undefined
}

export type GuestState = { same: boolean; wrong: string[]; n: number }

/** Stops the writer, and looks at disk and RAM. `boot`: of the guest as it was before; `isFilled`: as its writing was begun. */
export async function lookAt(via: number, boot: string, isFilled: boolean): Promise<GuestState> {
  const [disk = '', ram = '', rest = '', fill = ''] = (await exec(via, LOOK)).split('===\n')
  const [id, sum, blob, stopped] = rest.trim().split('\n')
  const [onDisk, inRam] = [parse(disk), parse(ram)]
  const same = id === boot
  const wrong: string[] = []
  const broken = brokenChain(onDisk)
  if (broken !== undefined) wrong.push(`the disk is not intact: ${broken}`)
  const [filled, now] = fill.trim().split('\n')
  if (isFilled && (!filled || filled !== now)) wrong.push(`the disk has not what it was filled with: ${fill.trim()}`)
  if (same) {
    if (stopped !== 'stopped') wrong.push('the writer in the guest does not run any more')
    if (sum !== blob || sum === undefined) wrong.push('RAM is not intact')
    if (JSON.stringify(onDisk) !== JSON.stringify(inRam)) wrong.push('the disk is not what the guest wrote')
  }
  return { same, wrong, n: onDisk.at(-1)?.n ?? 0 }
}
