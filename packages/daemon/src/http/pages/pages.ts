/** The two pages the daemon serves by itself. They work with the public API only; texts in English and Indonesian. */
import { script } from './script.ts'
import { style } from './style.ts'

const page = (title: string, main: string) => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<link rel="stylesheet" href="/assets/style.css">
<script src="/assets/page.js" defer></script>
</head>
<body>
<header><strong>Wadah</strong> <button type="button" id="language" lang="id">Bahasa Indonesia</button></header>
<main>
${main}
<p id="message" role="status" aria-live="polite"></p>
<noscript>This page needs JavaScript. Halaman ini memerlukan JavaScript.</noscript>
</main>
</body>
</html>
`

const setup = page(
  'Wadah',
  `<h1 data-text="setup_title">Make an administrator</h1>
<p data-text="setup_about">This link works once. Choose the name and password of the administrator.</p>
<form id="setup">
<label for="user" data-text="user">Name</label>
<input id="user" name="user" autocomplete="username" required maxlength="63" pattern="[a-z]([a-z0-9\\-]{0,61}[a-z0-9])?" autocapitalize="none">
<label for="password" data-text="password_new">Password (at least 10 characters)</label>
<input id="password" name="password" type="password" autocomplete="new-password" required minlength="10" maxlength="256">
<label for="again" data-text="password_again">The password again</label>
<input id="again" name="again" type="password" autocomplete="new-password" required>
<button data-text="setup_do">Make the administrator</button>
</form>`,
)

const home = page(
  'Wadah',
  `<h1 data-text="home_title">This is a Wadah host</h1>
<p data-text="home_about">Everything can be done with the command line (wadah) and the HTTP API; this page only looks.</p>
<p><a href="/v1/openapi.json" data-text="openapi">Description of the API (OpenAPI)</a></p>
<form id="login" hidden>
<label for="user" data-text="user">Name</label>
<input id="user" name="user" autocomplete="username" required maxlength="63" autocapitalize="none">
<label for="password" data-text="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required maxlength="256">
<button data-text="login">Log in</button>
</form>
<section id="inside" hidden>
<p><span data-text="logged_in">Logged in as</span> <strong id="who"></strong> <button type="button" id="logout" data-text="logout">Log out</button></p>
<table>
<thead><tr><th scope="col" data-text="vm_name">Server</th><th scope="col" data-text="vm_state">State</th><th scope="col" data-text="vm_address">Address</th></tr></thead>
<tbody id="vms"></tbody>
</table>
</section>`,
)

export type Asset = { type: string; text: string }

export const ASSETS: Readonly<Record<string, Asset>> = {
  '/': { type: 'text/html; charset=utf-8', text: home },
  '/setup': { type: 'text/html; charset=utf-8', text: setup },
  '/assets/page.js': { type: 'text/javascript; charset=utf-8', text: script },
  '/assets/style.css': { type: 'text/css; charset=utf-8', text: style },
}
