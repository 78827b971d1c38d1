// The page: cards on one side, their text on the other. The text is the prompt; the server reads no more.
//
//   cards  ──text()──►  "<image:a.png>Output: dax<EOC><image:b.png>Output:"  ──/ask──►  lines of JSON
//
// Whatever comes from a file, a person or the model is put on the page as text, never as HTML.
'use strict';

const $ = (id) => document.getElementById(id);
const pictures = new Map();  // by name: {id, frames, blob, url, ready}; id and frames once the server has it
let cards = [];              // {picture: name or null, root, text, blank, error}; the last one is the query
let about = null;            // what the server says of the model: see Desk.start
let template = '';           // what stands before an answer
let truth = '';              // of a drawn prompt, until it is changed
let runs = {};               // what came of the last question: {before, after}
let asking = null;           // AbortController, while an answer is being written
let typed = false;           // are the choices typed by hand?

// ---------------------------------------------------------------------------------------------
// Elements

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function bar(share) {  // 0 … 1
  const inside = make('span');
  inside.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  return make('span', {className: 'bar-of'}, inside);
}

function barRow(label, share, said) {
  return make('tr', {}, make('th', {scope: 'row', textContent: label}), make('td', {}, bar(share)),
              make('td', {className: 'number', textContent: said}));
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;
const fold = (text) => text.trim().replace(/\.$/, '').toLowerCase();

// ---------------------------------------------------------------------------------------------
// The server

class Failed extends Error {
  constructor(answer) {
    super(answer.error || 'no answer');
    Object.assign(this, {picture: answer.picture, missing: answer.missing});
  }
}

async function send(path, body, signal) {
  const file = body instanceof Blob;
  const response = await fetch(path, {
    method: 'POST', signal, body: file ? body : JSON.stringify(body),
    headers: {'Content-Type': file ? 'application/octet-stream' : 'application/json'},
  }).catch((e) => { throw e.name === 'AbortError' ? e : new Failed({error: 'the server does not answer'}); });
  if (!response.ok) throw new Failed(await response.json().catch(() => ({error: response.statusText})));
  return response;
}

async function sendAgain(path, request, signal) {
  try {
    return await send(path, request(), signal);
  } catch (e) {  // the server was started again, say: it gets the pictures once more
    if (!e.missing) throw e;
    await Promise.all(e.missing.map(upload));
    return send(path, request(), signal);
  }
}

async function* lines(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  for (let rest = ''; ;) {
    const {done, value} = await reader.read();
    const parts = (rest + decoder.decode(value, {stream: !done})).split('\n');
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
    if (done) return;
  }
}

async function upload(name) {
  const picture = pictures.get(name);
  const response = await send(`picture?name=${encodeURIComponent(name)}`, picture.blob);
  const {id, frames} = await response.json();
  Object.assign(picture, {id, frames: frames.map(asUrl)});
}

// ---------------------------------------------------------------------------------------------
// Cards

const query = () => cards[cards.length - 1];

function newCard(picture, said) {
  const root = $('card').content.firstElementChild.cloneNode(true);
  const find = (selector) => root.querySelector(selector);
  const card = {picture, root, text: find('textarea'), blank: find('.blank input'), error: find('.error'),
                button: find('.picture')};
  card.text.value = said;
  card.text.addEventListener('input', changed);
  card.blank.addEventListener('change', () => root.classList.toggle('blanked', card.blank.checked));
  card.button.addEventListener('click', () => choose((files) => give(card, files)));
  find('.earlier').addEventListener('click', () => move(card, -1));
  find('.later').addEventListener('click', () => move(card, 1));
  find('.remove').addEventListener('click', () => remove(card));
  find('.handle').addEventListener('dragstart', (e) => {
    e.dataTransfer.setData('text/x-card', String(cards.indexOf(card)));
    e.dataTransfer.setDragImage(root, 10, 10);
    e.dataTransfer.effectAllowed = 'move';
  });
  root.addEventListener('dragover', (e) => { e.preventDefault(); root.classList.add('over'); });
  root.addEventListener('dragleave', () => root.classList.remove('over'));
  root.addEventListener('drop', (e) => dropped(e, card));
  return card;
}

function show(card) {  // its picture: a still as it is, a clip as a film strip
  const picture = pictures.get(card.picture);
  card.button.replaceChildren();
  const label = picture ? `picture ${card.picture}; choose another` : 'add a picture';
  card.button.setAttribute('aria-label', label);
  if (!picture) {
    card.button.append(make('span', {className: 'none', textContent: 'add a picture'}));
  } else if (picture.frames && picture.frames.length > 1) {
    const strip = make('span', {className: 'strip'});
    strip.style.gridTemplateColumns = `repeat(${Math.ceil(Math.sqrt(picture.frames.length))}, 1fr)`;
    strip.append(...picture.frames.map((frame) => make('img', {src: frame, alt: ''})));
    card.button.append(strip);
  } else {
    const image = make('img', {src: picture.url, alt: '', draggable: false});
    image.addEventListener('load', () => image.classList.toggle('small', image.naturalWidth <= 96));
    image.addEventListener('error', () => {  // a kind that browsers do not show: what the model sees of it
      if (picture.frames && image.src !== picture.frames[0]) image.src = picture.frames[0];
    });
    card.button.append(image);
  }
}

function lay() {  // the cards, in their order
  const list = $('cards');
  cards.forEach((card, k) => {
    if (list.children[k] !== card.root) list.insertBefore(card.root, list.children[k] || null);
  });
  while (list.children.length > cards.length) list.lastChild.remove();
  let n = 0;
  cards.forEach((card, k) => {
    const last = card === query(), find = (selector) => card.root.querySelector(selector);
    n += card.picture ? 1 : 0;
    card.root.classList.toggle('query', last);
    find('.number').textContent = last ? 'asked about' : card.picture ? `picture ${n}` : 'text';
    card.text.setAttribute('aria-label', last ? 'text before the answer' : `text of card ${k + 1}`);
    find('.handle').draggable = !last;
    find('.earlier').hidden = find('.later').hidden = find('.remove').hidden = last;
    find('.earlier').setAttribute('aria-disabled', String(k === 0));  // disabled, it would lose the focus
    find('.later').setAttribute('aria-disabled', String(k === cards.length - 2));
    find('.blank').hidden = !card.picture;
  });
  changed();
}

function changed() {
  truth = '';
  if (document.activeElement !== $('text')) $('text').value = text();
  if (!typed) $('choices').value = [...new Set(cards.slice(0, -1).map(nameOn).filter(Boolean))].join(' | ');
}

function nameOn(card) {  // what stands after the last colon, where a prompt's words end with one
  const said = card.text.value;
  return said.includes(':') ? said.slice(said.lastIndexOf(':') + 1).trim() : '';
}

function isFree(card) {  // no picture, and nothing written but what is given
  return !card.picture && ['', template].includes(card.text.value.trim());
}

function text() {
  const filled = cards.filter((card) => !isFree(card) || card === query());
  const tag = (card) => (card.picture ? `<image:${card.picture}>` : '');
  return filled.map((card) => tag(card) + card.text.value).join('<EOC>');
}

function move(card, by) {
  const from = cards.indexOf(card), to = Math.max(0, Math.min(cards.length - 2, from + by));
  cards.splice(to, 0, ...cards.splice(from, 1));
  const focused = document.activeElement;
  lay();
  focused.focus();  // it moved with its card
  $('said').textContent = `card moved to place ${to + 1}`;
}

function remove(card) {
  const at = cards.indexOf(card);
  cards.splice(at, 1);
  lay();
  cards[Math.min(at, cards.length - 1)].text.focus();
}

function addCard(picture, said) {
  const card = newCard(picture, said);
  cards.splice(cards.length - 1, 0, card);
  show(card);
  return card;
}

function setCards(list, known = {}) {  // [{picture, text}], and pictures that come with them
  if (Object.keys(known).length) {
    for (const {url} of pictures.values()) URL.revokeObjectURL(url);
    pictures.clear();
  }
  remember(known);
  cards = list.map(({picture, text: said}) => newCard(picture, said));
  cards.forEach(show);
  $('cards').replaceChildren();
  typed = false;
  if (asking) asking.abort();
  clearAnswers();
  lay();
}

function emptyCards() {
  setCards([{picture: null, text: `${template} `}, {picture: null, text: template}]);
}

// ---------------------------------------------------------------------------------------------
// Pictures

function remember(known) {  // pictures that the server gives with their bytes
  for (const [name, {id, frames, content}] of Object.entries(known)) {
    const blob = new Blob([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))]);
    pictures.set(name, {id, frames: frames.map(asUrl), blob, url: URL.createObjectURL(blob)});
  }
}

const asUrl = (png) => `data:image/png;base64,${png}`;

function freshName(wanted) {  // a name that no other picture here has, and that can stand in a prompt
  const kept = (wanted || 'pasted.png').replace(/[<>|/\\:\x00-\x1f\x7f]|\p{Surrogate}/gu, '_');
  const clean = [...kept].slice(-80).join('').replace(/^\.+/, '') || 'x';
  const dot = clean.lastIndexOf('.') > 0 ? clean.lastIndexOf('.') : clean.length;
  let name = clean;
  for (let n = 2; pictures.has(name); n++) name = `${clean.slice(0, dot)}-${n}${clean.slice(dot)}`;
  return name;
}

async function give(card, files) {  // the first to this card, the others to free or new ones
  await Promise.all([...files].map((file, k) => setPicture(card && k === 0 ? card : freeCard(), file)));
}

function freeCard() {
  return cards.slice(0, -1).find(isFree) || addCard(null, `${template} `);
}

async function setPicture(card, file) {
  card.failed = false;
  card.error.textContent = '';
  if (file.size > about.limits.picture) {
    card.error.textContent = `${file.name}: more than ${about.limits.picture >> 20} MiB`;
    return lay();
  }
  const name = freshName(file.name), picture = {blob: file, url: URL.createObjectURL(file)};
  pictures.set(name, picture);
  card.picture = name;
  show(card);
  lay();
  try {
    await (picture.ready = upload(name));
  } catch (e) {
    card.error.textContent = `${file.name}: ${e.message}`;
    card.failed = true;
    card.picture = null;
    pictures.delete(name);
  }
  show(card);
  lay();
}

function choose(then) {
  const input = $('files');
  input.value = '';
  input.onchange = () => then(input.files);
  input.click();
}

function dropped(event, card) {
  event.preventDefault();
  event.stopPropagation();
  if (card) card.root.classList.remove('over');
  document.body.classList.remove('over');
  const from = event.dataTransfer.getData('text/x-card');
  if (event.dataTransfer.files.length) {
    give(card, event.dataTransfer.files);
  } else if (from !== '' && card) {
    move(cards[Number(from)], cards.indexOf(card) - Number(from));
  }
}

// ---------------------------------------------------------------------------------------------
// Prompts: drawn, pasted, saved

async function quietly(where, work) {  // errors in words, where they belong
  where.textContent = '';
  try {
    await work();
  } catch (e) {
    where.textContent = e.message;
  }
}

async function drawPrompt(seed) {
  const shots = $('kind').value === 'naming' ? about.shots : 4;
  const drawn = await (await send('draw', {kind: $('kind').value, seed, shots})).json();
  setCards(drawn.cards, drawn.pictures);
  setHow(drawn.choices);
  truth = drawn.truth;
}

async function drawOne(kind) {
  const drawn = await (await send('draw', {kind, seed: randomSeed()})).json();
  remember(drawn.pictures);
  const card = cards.find(isFree) || freeCard();  // the query, too, where it has none
  card.picture = Object.keys(drawn.pictures)[0];
  show(card);
  lay();
}

const randomSeed = () => Math.floor(Math.random() * 2 ** 31);

function setHow(choices) {
  document.querySelector(`[name=how][value=${choices ? 'choose' : 'write'}]`).checked = true;
  $('choices').value = choices;
  typed = false;
}

function newKind() {
  const before = template;
  template = about.templates[$('kind').value];
  for (const card of cards) {
    if (card.text.value.trim() === before) card.text.value = card === query() ? template : `${template} `;
  }
  if ($('kind').value === 'naming') document.querySelector('[name=how][value=choose]').checked = true;
  else document.querySelector('[name=how][value=write]').checked = true;
  changed();
}

function request() {
  const named = Object.create(null);  // a file may be called __proto__
  for (const card of cards) if (card.picture) named[card.picture] = pictures.get(card.picture).id;
  const ticked = document.querySelectorAll('[name=control]:checked');
  return {
    prompt: text(), pictures: named, keys: keys(), controls: [...ticked].map((box) => box.value), truth,
    blank: cards.filter((card) => card.blank.checked && card.picture).map((card) => card.picture),
    kind: $('kind').value,
  };
}

function keys() {
  const chosen = document.querySelector('[name=how]:checked').value === 'choose';
  const out = {choices: chosen ? $('choices').value : ''};
  for (const input of document.querySelectorAll('#asking [name]')) {
    if (input.name in about.keys) {
      if (input.type === 'checkbox') out[input.name] = input.checked;
      else if (input.value !== '') out[input.name] = Number(input.value);
    }
  }
  return out;
}

function setKeys(values) {
  for (const input of document.querySelectorAll('#asking [name]')) {
    if (!(input.name in values)) continue;
    if (input.type === 'checkbox') input.checked = values[input.name] === true;
    else input.value = values[input.name];
  }
}

async function usePasted() {
  const pasted = {prompt: $('text').value, names: [...pictures.keys()]};
  const {cards: list} = await (await send('parse', pasted)).json();
  document.activeElement.blur();
  setCards(list);
  $('text-said').textContent = `${list.length} cards`;
}

async function loadPrompt(file) {
  const most = about.limits.prompt;
  if (file.size > most) throw new Failed({error: `more than ${most >> 20} MiB`});
  const {cards: list, pictures: known, page} = await (await send('load', file)).json();
  setCards(list, known);
  if (page.kind in about.templates) $('kind').value = page.kind;
  template = about.templates[$('kind').value];
  const said = page.keys || {};
  setKeys(said);
  setHow(typeof said.choices === 'string' ? said.choices : '');
  typed = true;
  truth = typeof page.truth === 'string' ? page.truth : '';
  for (const box of document.querySelectorAll('[name=control]')) {
    box.checked = (page.controls || []).includes(box.value);
  }
  for (const card of cards) {
    card.blank.checked = (page.blank || []).includes(card.picture);
    card.root.classList.toggle('blanked', card.blank.checked);
  }
  $('text-said').textContent = `${list.length} cards`;
}

function download(blob, name) {
  const link = make('a', {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---------------------------------------------------------------------------------------------
// Asking

async function ask() {
  if (asking) return;
  asking = new AbortController();
  clearAnswers();
  for (const card of cards) if (!card.failed) card.error.textContent = '';
  if (!query().picture) query().error.textContent = 'asked without a picture';
  $('ask').disabled = true;
  $('stop').hidden = false;
  const start = performance.now(), seconds = () => (performance.now() - start) / 1000;
  const clock = setInterval(() => { $('clock').textContent = `${seconds().toFixed(0)} s`; }, 1000);
  try {
    await askOnce().catch(async (e) => {
      if (!e.missing) throw e;
      await Promise.all(e.missing.map(upload));
      await askOnce();
    });
    $('doing').textContent = `“${runs.before.answer}” after ${seconds().toFixed(2)} s`;
  } catch (e) {
    $('doing').textContent = e.name === 'AbortError' ? 'stopped' : '';
    if (e.name !== 'AbortError') showError(e);
  } finally {
    clearInterval(clock);
    $('clock').textContent = '';
    asking = null;
    $('ask').disabled = false;
    $('stop').hidden = true;
  }
}

function clearAnswers() {
  runs = {};
  $('ask-error').textContent = $('doing').textContent = '';
  $('answers').replaceChildren();
  $('sees').hidden = $('sheet').hidden = true;
}

async function askOnce() {
  await Promise.allSettled(cards.map((card) => card.picture && pictures.get(card.picture).ready));
  const asked = request();
  let done = false;
  for await (const event of lines(await send('ask', asked, asking.signal))) {
    if (event.error) throw new Failed(event);
    if (event.doing) $('doing').textContent = event.doing;
    if (event.run) {
      const run = runs[event.run] = Object.assign(runs[event.run] || {asked}, event);
      showRun(event.run, run);
      if (event.words && event.run === 'before') showSees('before');
    }
    done = done || event.done;
  }
  if (!done) throw new Failed({error: 'the answer broke off'});
  showSees('before');  // once more: by now there may be a spoilt run to choose
  $('sheet').hidden = false;
}

function showError(error) {
  const card = cards.find((c) => error.picture && c.picture === error.picture);
  if (card) {
    card.error.textContent = error.message;
    card.root.scrollIntoView({block: 'nearest'});
  }
  $('ask-error').textContent = card ? `${error.picture}: ${error.message}` : error.message;
}

function showRun(name, run) {
  if (!run.column) {
    run.column = make('section', {className: 'run'});
    $('answers').append(run.column);
  }
  const title = name === 'after' ? 'Spoilt' : 'As it is';
  const shown = run.answer ?? run.draft ?? '';
  const known = name === 'before' && run.answer !== undefined && truth !== '';
  const right = known ? fold(run.answer) === fold(truth) : null;
  const answer = make('p', {className: 'answer'}, shown || (run.answer === '' ? '(nothing)' : '…'));
  if (known) answer.classList.add(right ? 'right' : 'wrong');
  const parts = [make('h3', {textContent: title}), answer];
  if (known) parts.push(make('p', {className: 'hint', textContent: right ? 'right' : `it is: ${truth}`}));
  if (run.choices) parts.push(choicesTable(run.choices));
  if (run.steps) parts.push(...stepsOf(run));
  else if (run.likely && !run.choices) parts.push(likelyTable(run.likely));
  if (name === 'after' && run.cards) parts.push(askedWith(run.cards));
  run.column.replaceChildren(...parts);
}

function choicesTable(choices) {  // scores are log-probabilities, or differences of them
  const best = Math.max(...Object.values(choices));
  const sum = Object.values(choices).reduce((total, s) => total + Math.exp(s - best), 0);
  const body = make('tbody');
  for (const [choice, s] of Object.entries(choices).sort((a, b) => b[1] - a[1])) {
    const share = Math.exp(s - best) / sum;
    body.append(barRow(choice, share, `${percent(share)}   ${s.toFixed(2)}`));
  }
  const caption = make('caption', {textContent: 'share among the choices; score'});
  return make('table', {className: 'bars'}, caption, body);
}

function likelyTable(likely) {
  const body = make('tbody');
  for (const [word, p] of likely) body.append(barRow(word, p, percent(p)));
  return make('table', {className: 'bars words'}, body);
}

function stepsOf(run) {
  const chips = make('div', {className: 'chips'}), table = make('div');
  const pick = (step, chip) => {
    for (const other of chips.children) other.setAttribute('aria-pressed', String(other === chip));
    table.replaceChildren(likelyTable(step.likely));
  };
  for (const step of run.steps) {
    const chip = make('button', {type: 'button', textContent: step.text, title: percent(step.p)});
    chip.addEventListener('click', () => pick(step, chip));
    chips.append(chip);
  }
  if (run.steps.length) pick(run.steps[0], chips.firstChild);
  const hint = make('p', {className: 'hint'});
  hint.textContent = 'Token by token; choose one for the five likeliest in its place.';
  return [hint, chips, table];
}

function askedWith(list) {  // the spoilt prompt, small
  const row = make('div', {className: 'small-cards'});
  for (const {picture, text: said} of list) {
    const known = pictures.get(picture), card = make('span');
    if (known) card.append(make('img', {src: known.frames[0], alt: picture, className: 'tiny'}));
    else if (picture) card.append(make('span', {className: 'tiny grey', title: 'blank'}));
    card.append(make('span', {textContent: said}));
    row.append(card);
  }
  return row;
}

// ---------------------------------------------------------------------------------------------
// What it sees

function showSees(name) {
  const run = runs[name];
  $('sees').hidden = false;
  $('run-choice').replaceChildren();
  if (runs.after) {
    for (const [which, title] of [['before', 'as it is'], ['after', 'spoilt']]) {
      const button = make('button', {type: 'button', textContent: title});
      button.setAttribute('aria-pressed', String(which === name));
      button.addEventListener('click', () => runs[which].words && showSees(which));
      $('run-choice').append(button);
    }
  }
  const place = $('words');
  place.replaceChildren();
  let group = null, last = null;
  for (const word of run.words) {
    const key = `${word.index} ${word.answer}`;
    if (key !== last) {
      const label = (word.answer ? 'answer, ' : '') + (word.index ? `picture ${word.index}` : 'no picture');
      group = make('span', {className: 'group'}, make('small', {textContent: label}));
      place.append(group);
      last = key;
    }
    const button = make('button', {type: 'button', textContent: word.word, tabIndex: -1});
    button.addEventListener('focus', () => showWord(run, word, button));
    button.addEventListener('mouseenter', () => showWord(run, word, button));
    button.addEventListener('click', () => button.focus());
    group.append(button);
  }
  const all = [...place.querySelectorAll('button')];
  place.onkeydown = (e) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[e.key];
    const next = step && all[all.indexOf(document.activeElement) + step];
    if (next) { e.preventDefault(); next.focus(); }
  };
  const first = run.words.findIndex((word) => word.answer), at = first < 0 ? all.length - 1 : first;
  const now = () => all.findIndex((button) => button.getAttribute('aria-pressed') === 'true');
  for (const radio of document.querySelectorAll('[name=map]')) {
    radio.onchange = () => showWord(run, run.words[now()], all[now()]);
  }
  if (all[at]) showWord(run, run.words[at], all[at]);
}

function showWord(run, word, button) {
  for (const other of $('words').querySelectorAll('button')) {
    other.setAttribute('aria-pressed', String(other === button));
    other.tabIndex = other === button ? 0 : -1;
  }
  const names = run.cards.filter((card) => card.picture).map((card) => card.picture);
  const name = word.image === null ? null : names[word.image];
  for (const card of cards) card.root.classList.toggle('seen', name !== null && card.picture === name);
  const frames = $('shown').querySelector('.frames');
  frames.replaceChildren();
  const said = $('shown').querySelector('figcaption');
  if (name === null) {
    said.textContent = `“${word.word}” stands before every picture: it sees nothing.`;
    return;
  }
  const lost = document.querySelector('[name=map]:checked').value === 'lost';
  $('map-hint').textContent = lost ? LOST : ATTENTION;
  if (lost) showLost(run, word, frames);
  else showAttention(word, pictures.get(name), frames);
  const verb = word.index === word.image + 1 ? 'sees' : 'looks most at';
  const which = name === 'blank' ? 'blanked' : name;
  said.textContent = `“${word.word}” ${verb} picture ${word.image + 1} (${which}).`;
}

const ATTENTION = 'Circles: the attention of the gated layers to each place, followed back through the ' +
  'resampler. A place has a wide view of its picture, so they say what was weighed, not where a thing is.';
const LOST = 'In its own colours: what the word needs. A square of the picture is blanked, and the word ' +
  'becomes less likely; a line goes around what costs it most. Of a clip, the frame in the middle.';

function showAttention(word, known, frames) {
  const most = Math.max(1, ...word.weights.flat());
  word.weights.forEach((weights, f) => {
    const image = known ? make('img', {src: known.frames[f] || known.frames[0], alt: ''}) : make('span');
    image.classList.toggle('grey', !known);
    frames.append(make('span', {className: 'frame'}, image, circles(weights, most)));
  });
}

async function showLost(run, word, frames) {  // found once for all words that see a picture
  const image = word.index - 1, answer = run.answer;
  run.lost = run.lost || {};
  run.lost[image] = run.lost[image] || send('lost', {...run.asked, run: run.run, answer, image})
    .then((response) => response.json());
  const wait = make('span', {className: 'hint', textContent: 'blanking square by square …'});
  frames.replaceChildren(wait);
  try {
    const {maps} = await run.lost[image];
    if (wait.isConnected) frames.replaceChildren(make('img', {src: asUrl(maps[word.place]), alt: ''}));
  } catch (e) {
    delete run.lost[image];  // the next word asks again
    if (wait.isConnected) wait.textContent = e.message;
  }
}

function circles(weights, most) {  // a place each; the area is the weight, and the picture stays visible
  const side = Math.round(Math.sqrt(weights.length)), grid = make('span', {className: 'grid'});
  grid.style.gridTemplateColumns = `repeat(${side}, 1fr)`;
  for (const weight of weights) {
    const circle = make('i', {title: `${(weight / 10).toFixed(1)} % of the attention`});
    circle.style.width = circle.style.height = `${90 * Math.sqrt(weight / most)}%`;
    grid.append(make('span', {}, circle));
  }
  return grid;
}

// ---------------------------------------------------------------------------------------------
// The beginning

async function begin() {
  about = await (await send('start', {})).json();
  const side = about.image_size, [unit, letter] = about.parameters > 1e9 ? [1e9, 'B'] : [1e6, 'M'];
  const size = `${(about.parameters / unit).toFixed(1)} ${letter}`;
  $('who').textContent =
    `${about.checkpoint}: ${size} parameters, ${side} × ${side} pixels, a context of ${about.context} tokens`;
  setKeys(about.keys);
  about.gates.forEach(([x, d], k) => {
    const cell = (v) => make('td', {}, bar(Math.abs(v)), ` ${v.toFixed(2)}`);
    const layer = make('th', {scope: 'row', textContent: String(k + 1)});
    $('gates').tBodies[0].append(make('tr', {}, layer, cell(x), cell(d)));
  });
  template = about.templates[$('kind').value];
  emptyCards();
  await drawPrompt(about.keys.seed);
}

$('kind').addEventListener('change', newKind);
$('draw').addEventListener('click', () => quietly($('said'), () => drawPrompt(randomSeed())));
$('empty').addEventListener('click', emptyCards);
$('add').addEventListener('click', () => choose((files) => give(null, files)));
$('draw-picture').addEventListener('click', () => quietly($('said'), () => drawOne('picture')));
$('draw-clip').addEventListener('click', () => quietly($('said'), () => drawOne('clip')));
$('add-text').addEventListener('click', () => {
  const card = addCard(null, `${template} `);
  lay();
  card.text.focus();
});
$('choices').addEventListener('input', () => { typed = true; });
$('from-cards').addEventListener('click', () => { typed = false; changed(); });
$('copy').addEventListener('click', () => quietly($('text-said'), async () => {
  await navigator.clipboard.writeText($('text').value);
  $('text-said').textContent = 'copied';
}));
$('use').addEventListener('click', () => quietly($('text-said'), usePasted));
$('save').addEventListener('click', () => quietly($('text-said'), async () => {
  download(await (await sendAgain('save', request)).blob(), 'prompt.zip');
}));
$('load').addEventListener('click', () => { $('loaded').value = ''; $('loaded').click(); });
$('loaded').addEventListener('change', () => quietly($('text-said'), () => loadPrompt($('loaded').files[0])));
$('sheet').addEventListener('click', () => quietly($('ask-error'), async () => {
  const answer = runs.before.answer;
  download(await (await sendAgain('sheet', () => ({...request(), answer}))).blob(), 'sample.png');
}));
$('asking').addEventListener('submit', (e) => { e.preventDefault(); ask(); });
$('stop').addEventListener('click', () => asking && asking.abort());
document.addEventListener('keydown', (e) => {
  if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) ask();
});
document.addEventListener('paste', (e) => {
  if (!e.clipboardData.files.length) return;
  e.preventDefault();
  give(null, e.clipboardData.files);
});
document.addEventListener('dragover', (e) => { e.preventDefault(); });
document.addEventListener('drop', (e) => dropped(e, null));
quietly($('said'), begin);
