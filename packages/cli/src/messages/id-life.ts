/** Kata-kata tentang tindakan atas banyak VM, hidup mesin, dan server yang dideklarasikan. */
import type { life as en } from './en-life.ts'

export const life: Record<keyof typeof en, string> = {
  'opt.bulk.selector': 'semua VM yang labelnya cocok: role=web,env!=test,!old',
  'opt.yes': 'jangan bertanya',
  'opt.protect': 'tolak penghapusannya sampai --unprotect',
  'opt.unprotect': 'izinkan lagi penghapusannya',
  'opt.autostart': 'jalankan bersama mesin',
  'opt.no_autostart': 'jangan jalankan bersama mesin',
  'opt.start_order': 'urutan mulai, 0 sampai 9999; yang kecil lebih dahulu (biasanya: 100)',
  'opt.start_delay': 'jeda sebelum urutan berikutnya mulai: 30, 30s, 2m',
  'bulk.none': 'Sebutkan satu VM, beberapa, atau --selector',
  'bulk.both': 'Nama dan --selector tidak dapat diberikan bersama',
  'bulk.no_match': 'Tidak ada VM dengan label itu: {selector}',
  'bulk.ask': '{verb}: {names}. Lanjutkan? [y/N]',
  'bulk.refused': 'Tidak ada yang dilakukan',
  'bulk.already': '{name}: tidak ada yang perlu dilakukan',
  'bulk.failed': '{name}: {title}: {detail}',
  'bulk.begun': '{name}: pekerjaan {id}',
  'bulk.summary': 'selesai: {done}, tidak perlu: {already}, gagal: {failed}',
  'ask.give_yes': 'berikan --yes',
  'col.autostart': 'mulai otomatis',
  'col.protected': 'dilindungi',
  'autostart.text': 'urutan {order}, lalu {delay} s',
}
