// The dialogs: sampling, the system prompt, the API key.

/** The sampling controls: field of the request, label, and what it takes. */
const CONTROLS = [
  { name: 'temperature', label: 'Temperature', min: 0, max: 100, help: '0 always takes the likeliest word; above 1 is wild' },
  { name: 'top_p', label: 'Top p', min: 0, max: 1, help: 'only the likeliest words with this share together' },
  { name: 'top_k', label: 'Top k', min: 0, isWhole: true, help: 'only so many words; 0 is all' },
  { name: 'min_p', label: 'Min p', min: 0, max: 1, help: 'only words at least so likely as this share of the likeliest' },
  { name: 'repeat_penalty', label: 'Repeat penalty', above: 0, help: '1 is none, 1.1 is usual' },
  { name: 'max_tokens', label: 'Max tokens', min: 1, isWhole: true, help: 'most tokens of an answer' },
  { name: 'seed', label: 'Seed', isSeed: true, help: 'the same seed gives the same answer again' },
];
const SEED_MIN = -(2n ** 63n);
const SEED_MAX = 2n ** 64n - 1n;

/** Why `text` isn't a value of the control; empty if it is one, or empty. */
export function complaint(control, text) {
  if (text === '') return '';
  if (control.isSeed) {
    const isSeed = /^-?\d{1,20}$/.test(text) && BigInt(text) >= SEED_MIN && BigInt(text) <= SEED_MAX;
    return isSeed ? '' : 'a whole number of up to 64 bits';
  }
  const value = Number(text);
  if (!Number.isFinite(value)) return 'a number';
  if (control.isWhole && !Number.isSafeInteger(value)) return 'a whole number';
  if (control.above !== undefined && value <= control.above) return `more than ${control.above}`;
  if (control.min !== undefined && value < control.min) return `at least ${control.min}`;
  if (control.max !== undefined && value > control.max) return `at most ${control.max}`;
  return '';
}

/** The fields of a request for what was typed; what is wrong or empty is left out. A seed stays a string. */
export function samplingFields(typed) {
  const fields = {};
  for (const control of CONTROLS) {
    const text = String(typed?.[control.name] ?? '').trim();
    if (text === '' || complaint(control, text)) continue;
    // `007` is no JSON, and `-0` no other seed than `0`.
    fields[control.name] = control.isSeed ? String(BigInt(text)) : Number(text);
  }
  return fields;
}

/** Fills the controls in; `onChange` gets {name: text} with every change that is a value. */
export function buildSampling(root, typed, onChange) {
  const values = { ...typed };
  for (const control of CONTROLS) {
    const id = `sampling-${control.name}`;
    const row = document.createElement('div');
    row.className = 'field';
    const label = document.createElement('label');
    label.htmlFor = id;
    label.textContent = control.label;
    const input = document.createElement('input');
    Object.assign(input, { id, type: 'text', inputMode: control.isWhole || control.isSeed ? 'numeric' : 'decimal' });
    Object.assign(input, { autocomplete: 'off', placeholder: 'default', value: values[control.name] ?? '' });
    const help = document.createElement('p');
    help.id = `${id}-help`;
    help.className = 'help';
    input.setAttribute('aria-describedby', help.id);
    const check = () => {
      const text = input.value.trim();
      const wrong = complaint(control, text);
      input.setAttribute('aria-invalid', String(wrong !== ''));
      help.textContent = wrong ? `Must be ${wrong}; the default is used until then.` : control.help;
      help.classList.toggle('wrong', wrong !== '');
      values[control.name] = wrong ? '' : text;
    };
    check();
    input.addEventListener('input', () => {
      check();
      onChange({ ...values });
    });
    row.append(label, input, help);
    root.append(row);
  }
}

/** Lets buttons with `data-close` and a click beside a dialog close it. */
export function wireDialog(dialog) {
  dialog.addEventListener('click', (event) => {
    const isBeside = event.target === dialog && event.detail > 0 && !inside(dialog, event);
    if (isBeside || event.target.closest('[data-close]')) dialog.close();
  });
}

function inside(dialog, { clientX, clientY }) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  return clientX >= left && clientX <= right && clientY >= top && clientY <= bottom;
}
