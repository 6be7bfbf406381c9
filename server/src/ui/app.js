// The chat page: what happens when. What things look like is in view.js, shell.js and settings.js, the wire in api.js,
// what is kept in store.js.

import { fetchModels, streamAnswer } from './api.js';
import { $, announce, closeNotice, closeSidebar, nextTheme, notify, wireShell } from './shell.js';
import { buildSampling, samplingFields, wireDialog } from './settings.js';
import { LIMITS, Store, newConversation, titleOf } from './store.js';
import { Transcript, copyText } from './view.js';

/** An answer that comes is saved so often. */
const SAVE_EVERY_MS = 2000;
/** So near to the end, the page follows an answer that grows. */
const NEAR_PX = 60;
const KEY = 'shimmy.key';
const CURRENT = 'shimmy.current';

/** A `Storage`, or null where the browser gives none. */
function storageOf(name) {
  try {
    const storage = window[name];
    storage.getItem('');
    return storage;
  } catch {
    return null;
  }
}

const local = storageOf('localStorage');
const session = storageOf('sessionStorage');
const store = new Store(local);
const preferences = store.preferences();
let models = [];
let key = session?.getItem(KEY) ?? '';
let conversation = newConversation();
let isFollowing = true;
let retryWithKey = null;
/** Answers that are coming: id of the conversation → {controller, message}. */
const runs = new Map();

/** Saves, or says why it can't. */
function keep(save) {
  try {
    save();
  } catch (error) {
    notify(error.message);
  }
}

function savePreferences() {
  keep(() => store.savePreferences(preferences));
}

// ---- Models

async function loadModels() {
  try {
    const before = JSON.stringify(models);
    models = await fetchModels(key);
    // Somebody may be looking through the list.
    if (JSON.stringify(models) !== before) showModels();
  } catch (failure) {
    if (failure.kind === 'key') askForKey(failure.message, loadModels);
    else notify(`The models could not be listed: ${failure.message}.`, 'Try again', loadModels);
  }
  showWelcome();
}

function showModels() {
  const known = (id) => models.some((model) => model.id === id);
  const wanted = [conversation.model, preferences.model].find((id) => id && (known(id) || id === conversation.model));
  const chosen = wanted ?? (models.find((model) => model.loaded) ?? models[0])?.id ?? '';
  const groups = [
    ['Loaded', models.filter((model) => model.loaded)],
    ['Loaded when first asked', models.filter((model) => !model.loaded)],
    ['Not on this server', chosen && !known(chosen) ? [{ id: chosen }] : []],
  ];
  const nodes = groups.filter(([, group]) => group.length).map(([label, group]) => {
    const node = document.createElement('optgroup');
    node.label = label;
    node.append(...group.map(({ id }) => new Option(id, id)));
    return node;
  });
  $('model').replaceChildren(...nodes);
  $('model').value = chosen;
  $('model').disabled = nodes.length === 0;
}

function isLoaded(id) {
  return models.some((model) => model.id === id && model.loaded);
}

function pickModel() {
  conversation.model = preferences.model = $('model').value;
  savePreferences();
  if (conversation.messages.length) keep(() => store.save(conversation));
  showWelcome();
}

// ---- Showing the conversation

const transcript = new Transcript($('messages'), {
  copy: (message, button) => copy(message.content, button),
  copyText: copy,
  edit: (message) => editQuestion(message),
  remove: (message) => removeExchange(message),
  regenerate: (message) => regenerate(message),
  enterKey: (message) => askForKey(message.failure.message, () => regenerate(message)),
}, follow);

async function copy(text, button) {
  const done = await copyText(text);
  const name = button.textContent;
  button.textContent = done ? 'Copied' : 'Not copied';
  announce(button.textContent);
  setTimeout(() => (button.textContent = name), 1500);
}

function follow() {
  if (isFollowing) toEnd();
  else updateToEnd();
}

function toEnd() {
  const scroller = $('scroller');
  scroller.scrollTop = scroller.scrollHeight;
  isFollowing = true;
  updateToEnd();
}

function updateToEnd() {
  $('to-end').hidden = isFollowing;
}

function onScroll() {
  const { scrollHeight, scrollTop, clientHeight } = $('scroller');
  isFollowing = scrollHeight - scrollTop - clientHeight < NEAR_PX;
  updateToEnd();
}

function showWelcome() {
  $('welcome').hidden = conversation.messages.length > 0;
  const model = $('model').value;
  if (!model) {
    $('welcome-title').textContent = 'No models yet';
    $('welcome-text').textContent =
      'Put a GGUF file into the folder “models” where the server runs, or start it with --model or --model-dirs; then reload this page.';
  } else {
    $('welcome-title').textContent = 'What would you like to know?';
    const loads = isLoaded(model) ? '' : ' It is loaded with the first question, which takes a moment.';
    $('welcome-text').textContent = `${model} answers on the server that this page came from.${loads}`;
  }
}

function showConversation() {
  const run = runs.get(conversation.id);
  transcript.show(conversation.messages, (message) => message === run?.message);
  $('system').value = conversation.system;
  document.title = conversation.messages.length ? `${titleOf(conversation)} · Shimmy` : 'Shimmy';
  keep(() => session?.setItem(CURRENT, conversation.id));
  showModels();
  showWelcome();
  showList();
  showComposer();
  toEnd();
}

function showComposer() {
  const isRunning = runs.has(conversation.id);
  const hadFocus = [$('stop'), $('send')].includes(document.activeElement);
  $('send').hidden = isRunning;
  $('stop').hidden = !isRunning;
  if (hadFocus) $('question').focus();
}

function showList() {
  const items = store.list().map((entry) => {
    const item = document.createElement('li');
    const open = document.createElement('button');
    const title = titleOf(entry) || 'Empty conversation';
    Object.assign(open, { type: 'button', className: 'conversation', textContent: title, title });
    if (entry.id === conversation.id) open.setAttribute('aria-current', 'true');
    open.addEventListener('click', () => {
      openConversation(entry);
      closeSidebar();
    });
    const remove = document.createElement('button');
    Object.assign(remove, { type: 'button', className: 'quiet remove', textContent: '×' });
    remove.setAttribute('aria-label', `Delete the conversation “${title}”`);
    remove.addEventListener('click', () => removeConversation(entry));
    item.append(open, remove);
    return item;
  });
  $('conversations').replaceChildren(...items);
}

// ---- Asking

/** The messages of a request: nothing for answers that failed before their first word, and two questions as one. */
function requestMessages({ system, messages }) {
  const sent = system.trim() ? [{ role: 'system', content: system }] : [];
  for (const { role, content } of messages) {
    const last = sent.at(-1);
    if (content === '') continue;
    if (last?.role === role) last.content += `\n\n${content}`;
    else sent.push({ role, content });
  }
  return sent;
}

function ask(text) {
  if (!$('model').value) {
    notify('There is no model to ask.', 'Look again', loadModels);
    return false;
  }
  if (text.length > LIMITS.text || conversation.messages.length + 2 > LIMITS.messages) {
    notify('That is more than this page can keep. Start a new chat, or shorten the question.');
    return false;
  }
  const message = { role: 'user', content: text };
  conversation.messages.push(message);
  transcript.add(message);
  closeNotice();
  answer(conversation);
  return true;
}

function statisticsOf({ usage, timings }, firstMs) {
  const stats = {
    perSecond: timings?.predicted_per_second ?? undefined,
    firstMs,
    prompt: usage?.prompt_tokens,
    cached: usage?.prompt_tokens_details?.cached_tokens,
    completion: usage?.completion_tokens,
  };
  return Object.fromEntries(Object.entries(stats).filter(([, value]) => value !== undefined));
}

/** Lets the model answer the last question of `asked`. Goes on when another conversation is shown meanwhile. */
async function answer(asked) {
  const model = $('model').value;
  const fields = { model, messages: requestMessages(asked), ...samplingFields(preferences.sampling) };
  const message = { role: 'assistant', content: '', model };
  const controller = new AbortController();
  asked.messages.push(message);
  Object.assign(asked, { model, updated: Date.now(), title: titleOf(asked) });
  runs.set(asked.id, { controller, message });
  keep(() => store.save(asked));
  transcript.add(message, true);
  if (!isLoaded(model)) transcript.waiting(message, `${model} is being loaded…`);
  isFollowing = true;
  showWelcome();
  showList();
  showComposer();
  toEnd();

  const start = performance.now();
  let [firstMs, savedAt] = [undefined, start];
  let result = {};
  try {
    result = await streamAnswer(fields, {
      key,
      signal: controller.signal,
      onText(text) {
        const now = performance.now();
        firstMs ??= now - start;
        message.content += text;
        transcript.grow(message, text);
        if (now - savedAt > SAVE_EVERY_MS) {
          savedAt = now;
          keep(() => store.save(asked));
        }
      },
      onLoading(why) {
        transcript.waiting(message, `Waiting: ${why}.`);
      },
    });
    message.finish = result.finish ?? 'stop';
    if (result.seed) message.seed = result.seed;
    if (result.ignored) notify(`The server ignored: ${result.ignored}.`);
  } catch (failure) {
    if (failure.kind === 'stopped') message.finish = 'stopped';
    else message.failure = { kind: failure.kind ?? 'server', message: failure.message, retryAfter: failure.retryAfter };
  }
  message.stats = statisticsOf(result, firstMs);
  if (runs.get(asked.id)?.message === message) runs.delete(asked.id);
  // It may have been replaced, or its conversation deleted, in the meantime.
  if (store.conversations.get(asked.id) === asked && asked.messages.includes(message)) {
    asked.updated = Date.now();
    keep(() => store.save(asked));
  }
  if (transcript.has(message)) {
    transcript.done(message);
    const { failure, content } = message;
    announce(failure ? `Error: ${failure.message}` : `Answer: ${content}`);
    if (failure?.kind === 'key') askForKey(failure.message, () => regenerate(message));
  }
  showList();
  showComposer();
  if (!isLoaded(model) && !message.failure) loadModels();
}

function stop(of = conversation) {
  const run = runs.get(of.id);
  if (!run) return false;
  runs.delete(of.id);
  run.message.finish = 'stopped';
  run.controller.abort();
  if (of === conversation) showComposer();
  return true;
}

/** Changes a conversation's messages so that it can be undone. */
function change(changed, what, action) {
  stop(changed);
  const before = [...changed.messages];
  const lost = action();
  keep(() => store.save(changed));
  showConversation();
  if (!lost) return;
  notify(what, 'Undo', () => {
    stop(changed);
    changed.messages = before;
    keep(() => store.save(changed));
    if (changed === conversation) showConversation();
    else showList();
  });
}

function editQuestion(message) {
  transcript.edit(message, (text) => {
    const { messages } = conversation;
    const at = messages.indexOf(message);
    const lost = messages.length - at > 2;
    change(conversation, 'The messages after the changed one were removed.', () => {
      messages.splice(at, messages.length, { role: 'user', content: text });
      return lost;
    });
    answer(conversation);
    $('question').focus();
  });
}

function regenerate(message) {
  const { messages } = conversation;
  const at = messages.indexOf(message);
  if (at < 0) return;
  change(conversation, 'The messages after that answer were removed.', () => messages.splice(at).length > 1);
  answer(conversation);
  $('question').focus();
}

function removeExchange(message) {
  const { messages } = conversation;
  const at = messages.indexOf(message);
  const next = messages.findIndex((other, index) => index > at && other.role === 'user');
  change(conversation, 'A question and its answer were deleted.', () => {
    messages.splice(at, (next < 0 ? messages.length : next) - at);
    return true;
  });
  $('question').focus();
}

// ---- Conversations

function openConversation(next) {
  conversation = next;
  showConversation();
}

function newChat() {
  closeSidebar();
  conversation = newConversation({ model: $('model').value, system: conversation.system });
  showConversation();
  $('question').focus();
}

function removeConversation(removed) {
  stop(removed);
  store.remove(removed.id);
  if (removed.id === conversation.id) {
    conversation = newConversation({ model: $('model').value, system: conversation.system });
    showConversation();
  }
  showList();
  $('new-chat').focus();
  notify(`“${titleOf(removed) || 'Empty conversation'}” was deleted.`, 'Undo', () => {
    keep(() => store.save(removed));
    openConversation(removed);
  });
}

function exportConversations() {
  const url = URL.createObjectURL(new Blob([store.exportText()], { type: 'application/json' }));
  const link = document.createElement('a');
  link.href = url;
  link.download = `shimmy-conversations-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function importConversations() {
  const file = $('import-file').files[0];
  $('import-file').value = '';
  if (!file) return;
  try {
    const { added, kept } = store.importText(file.size > LIMITS.file ? ' '.repeat(LIMITS.file + 1) : await file.text());
    notify(`Imported ${added}; ${kept} were here already.`);
  } catch (error) {
    notify(error.message);
  }
  // The one that is shown may be among them.
  conversation = runs.has(conversation.id) ? conversation : (store.conversations.get(conversation.id) ?? conversation);
  showConversation();
}

// ---- Key

function askForKey(why, retry) {
  retryWithKey = retry;
  $('key').value = key;
  $('key-why').textContent = why;
  if (!$('key-dialog').open) $('key-dialog').showModal();
  $('key').select();
}

function saveKey(event) {
  event.preventDefault();
  key = $('key').value.trim();
  if (key) session?.setItem(KEY, key);
  else session?.removeItem(KEY);
  $('key-dialog').close();
  showKeyState();
  const retry = retryWithKey;
  retryWithKey = null;
  retry?.();
  if (retry !== loadModels) loadModels();
}

function showKeyState() {
  $('key-state').textContent = key ? 'A key is sent with every request until this tab is closed.' : 'No key is sent.';
}

// ---- Keyboard

function resize() {
  const area = $('question');
  area.style.height = 'auto';
  area.style.height = `${Math.min(area.scrollHeight, 240)}px`;
}

function send(event) {
  event?.preventDefault();
  const text = $('question').value.trim();
  if (!text || runs.has(conversation.id)) return;
  if (ask(text)) $('question').value = '';
  resize();
}

function onQuestionKey(event) {
  // An input method uses Enter for itself.
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key === 'Enter' && !event.shiftKey) send(event);
  if (event.key === 'ArrowUp' && $('question').value === '') {
    const last = conversation.messages.findLast((message) => message.role === 'user');
    if (last) {
      event.preventDefault();
      editQuestion(last);
    }
  }
}

function onKey(event) {
  if (document.querySelector('dialog[open]') || event.isComposing) return;
  const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === 'Escape') {
    if (!closeSidebar() && stop()) event.preventDefault();
  } else if (event.code === 'KeyN' && event.altKey && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    newChat();
  } else if (event.key === '/' && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $('question').focus();
  }
}

// ---- Start

function wire() {
  const on = (id, event, action) => $(id).addEventListener(event, action);
  on('composer', 'submit', send);
  on('question', 'keydown', onQuestionKey);
  on('question', 'input', resize);
  on('stop', 'click', () => stop());
  on('model', 'change', pickModel);
  on('new-chat', 'click', newChat);
  on('export', 'click', exportConversations);
  on('import', 'click', () => $('import-file').click());
  on('import-file', 'change', importConversations);
  on('theme', 'click', () => keep(() => local?.setItem('shimmy.theme', nextTheme())));
  on('to-end', 'click', toEnd);
  on('scroller', 'scroll', onScroll);
  on('open-settings', 'click', () => $('settings').showModal());
  on('system', 'input', () => {
    conversation.system = $('system').value;
    if (conversation.messages.length) keep(() => store.save(conversation));
  });
  on('reset-sampling', 'click', () => showSampling({}));
  on('change-key', 'click', () => askForKey('Only servers that were started with API keys want one.', null));
  on('key-form', 'submit', saveKey);
  wireDialog($('settings'));
  wireDialog($('key-dialog'));
  document.addEventListener('keydown', onKey);
  window.addEventListener('focus', () => models.length && loadModels());
  // What has come so far outlives the page.
  window.addEventListener('pagehide', () => runs.has(conversation.id) && keep(() => store.save(conversation)));
  window.addEventListener('storage', (event) => {
    if (event.storageArea !== local || runs.has(event.key?.slice('shimmy.chat.'.length))) return;
    if (!store.reload(event.key)) return;
    const changed = store.conversations.get(conversation.id);
    if (changed && changed !== conversation) openConversation(changed);
    else showList();
  });
}

function showSampling(typed) {
  preferences.sampling = typed;
  savePreferences();
  $('sampling').replaceChildren();
  buildSampling($('sampling'), typed, (values) => {
    preferences.sampling = values;
    savePreferences();
  });
}

wireShell();
wire();
showKeyState();
showSampling(preferences.sampling ?? {});
conversation = store.conversations.get(session?.getItem(CURRENT) ?? '') ?? conversation;
showConversation();
if (!local) notify('This browser keeps nothing for this page: conversations last until it is closed.');
await loadModels();
$('question').focus({ preventScroll: true });
