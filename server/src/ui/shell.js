// What surrounds the conversation: notices, what is read out, the theme, the list at the side.

const THEMES = ['system', 'light', 'dark'];
/** So much of an answer is read out. */
const MOST_READ_OUT = 1500;

export const $ = (id) => document.getElementById(id);

// On a window so narrow, the list lies above the page. As in app.css.
const narrow = matchMedia('(max-width: 55rem)');
let noticeAction = null;

/** Shows a notice until the next one, with something to do about it. */
export function notify(text, actionName = '', action = null) {
  $('notice-text').textContent = text;
  $('notice-action').textContent = actionName;
  $('notice-action').hidden = !action;
  noticeAction = action;
  $('notice').hidden = false;
}

export function closeNotice() {
  $('notice').hidden = true;
  noticeAction = null;
}

/** Lets a screen reader say this when it has nothing else to say. */
export function announce(text) {
  $('announcer').textContent = text.length > MOST_READ_OUT ? `${text.slice(0, MOST_READ_OUT)} … and more.` : text;
}

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? 'system';
  $('theme').setAttribute('aria-label', `Theme: ${theme === 'system' ? 'as the system' : theme}`);
  $('theme').dataset.theme = theme;
}

/** Takes the next theme and returns its name. */
export function nextTheme() {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? 'system') + 1) % THEMES.length];
  if (next === 'system') delete root.dataset.theme;
  else root.dataset.theme = next;
  showTheme();
  announce($('theme').getAttribute('aria-label'));
  return next;
}

function setSidebar(isOpen) {
  document.body.classList.toggle('sidebar-open', isOpen);
  $('backdrop').hidden = !isOpen;
  $('open-sidebar').setAttribute('aria-expanded', String(isOpen));
  // Beside the page it is always there; above it, whatever is hidden mustn't take the focus.
  $('sidebar').inert = narrow.matches && !isOpen;
  $('frame').inert = narrow.matches && isOpen;
}

function openSidebar() {
  setSidebar(true);
  $('new-chat').focus();
}

/** True if it was open, above the page. */
export function closeSidebar() {
  const wasOpen = document.body.classList.contains('sidebar-open');
  setSidebar(false);
  if (wasOpen) $('open-sidebar').focus();
  return wasOpen;
}

export function wireShell() {
  const on = (id, action) => $(id).addEventListener('click', action);
  on('open-sidebar', openSidebar);
  on('close-sidebar', closeSidebar);
  on('backdrop', closeSidebar);
  on('notice-close', closeNotice);
  on('notice-action', () => {
    const action = noticeAction;
    closeNotice();
    action?.();
  });
  narrow.addEventListener('change', () => setSidebar(false));
  setSidebar(false);
  showTheme();
}
