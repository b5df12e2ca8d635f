/** The script of both pages, as the browser gets it. Kept as text so that the daemon is one file when bundled. */
export const script = String.raw`'use strict'
const TEXTS = {
  id: {
    setup_title: 'Buat administrator',
    setup_about: 'Tautan ini hanya berlaku sekali. Pilih nama dan kata sandi administrator.',
    user: 'Nama',
    password: 'Kata sandi',
    password_new: 'Kata sandi (paling sedikit 10 karakter)',
    password_again: 'Ulangi kata sandi',
    setup_do: 'Buat administrator',
    home_title: 'Ini adalah host Wadah',
    home_about: 'Semua dapat dilakukan dengan baris perintah (wadah) dan API HTTP; halaman ini hanya untuk melihat.',
    openapi: 'Penjelasan API (OpenAPI)',
    login: 'Masuk',
    logged_in: 'Masuk sebagai',
    logout: 'Keluar',
    vm_name: 'Server',
    vm_state: 'Keadaan',
    vm_address: 'Alamat',
    differ: 'Kedua kata sandi tidak sama.',
    no_code: 'Alamat ini tidak memuat kode. Buka seluruh tautan yang ditampilkan oleh wadahd.',
    unreachable: 'Wadah tidak dapat dihubungi.',
  },
  en: {
    differ: 'The two passwords differ.',
    no_code: 'This address has no code in it. Open the whole link that wadahd showed.',
    unreachable: 'Wadah cannot be reached.',
  },
}
const byId = (id) => document.getElementById(id)
let language = (navigator.language || 'en').toLowerCase().startsWith('id') ? 'id' : 'en'
try { language = localStorage.getItem('language') || language } catch { /* no storage: the browser's language */ }

for (const element of document.querySelectorAll('[data-text]')) TEXTS.en[element.dataset.text] = element.textContent
const text = (key) => TEXTS[language][key] || TEXTS.en[key]
function translate() {
  document.documentElement.lang = language
  for (const element of document.querySelectorAll('[data-text]')) element.textContent = text(element.dataset.text)
  byId('language').textContent = language === 'en' ? 'Bahasa Indonesia' : 'English'
  byId('language').lang = language === 'en' ? 'id' : 'en'
}
byId('language').addEventListener('click', () => {
  language = language === 'en' ? 'id' : 'en'
  try { localStorage.setItem('language', language) } catch { /* not remembered then */ }
  translate()
})
translate()

function say(message) {
  byId('message').textContent = message
}

/** The parsed answer; throws an Error with words for people. */
async function call(method, path, body) {
  let answer
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
  } catch {
    throw new Error(text('unreachable'))
  }
  const type = answer.headers.get('content-type') || ''
  const value = type.includes('json') ? await answer.json() : undefined
  if (answer.ok) return value
  const error = new Error(value ? [value.detail, value.remedy].filter(Boolean).join(' ') : String(answer.status))
  error.status = answer.status
  throw error
}

function onSubmit(form, act) {
  form.addEventListener('submit', async (event) => {
    event.preventDefault()
    const button = form.querySelector('button')
    button.disabled = true
    say('')
    try {
      await act(new FormData(form))
    } catch (error) {
      say(error.message)
    } finally {
      button.disabled = false
    }
  })
}

async function show() {
  let session
  try {
    session = await call('GET', '/v1/session')
  } catch (error) {
    if (error.status !== 401) return say(error.message)
  }
  byId('login').hidden = Boolean(session)
  byId('inside').hidden = !session
  if (!session) return
  byId('who').textContent = session.user
  const rows = []
  for (const vm of (await call('GET', '/v1/vms?limit=1000')).items) {
    const row = document.createElement('tr')
    const addresses = (vm.addresses || []).map((a) => a.address).join(', ')
    for (const value of [vm.name, vm.status.state, addresses]) row.append(Object.assign(document.createElement('td'), { textContent: value }))
    rows.push(row)
  }
  byId('vms').replaceChildren(...rows)
}

const setup = byId('setup')
if (setup) {
  const code = location.hash.slice(1)
  if (!code) say(text('no_code'))
  onSubmit(setup, async (data) => {
    if (data.get('password') !== data.get('again')) throw new Error(text('differ'))
    await call('POST', '/v1/setup', { code, user: data.get('user'), password: data.get('password') })
    location.replace('/')
  })
} else {
  onSubmit(byId('login'), async (data) => {
    await call('POST', '/v1/login', { user: data.get('user'), password: data.get('password') })
    byId('password').value = ''
    await show()
  })
  byId('logout').addEventListener('click', () => call('POST', '/v1/logout').then(show).catch((error) => say(error.message)))
  show().catch((error) => say(error.message))
}
`
