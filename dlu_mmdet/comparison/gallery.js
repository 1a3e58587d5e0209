'use strict';
(() => {
  // of a detection: x, y, width, height, label, score, kind; of an object: x, y, width,
  // height, label, crowd
  const [LABEL, SCORE, KIND, CROWD] = [4, 5, 6, 5];
  const [TRUE, IGNORED] = [-1, -2];
  const PAGE = 60;
  const data = galleryData;
  const names = data.upsamplers.map((each) => each.name);
  const images = data.images.map(([id, name, width, height, source, objects]) => ({
    id: String(id), name, width, height, source, objects,
  }));
  const byId = new Map(images.map((image) => [image.id, image]));
  const root = document.getElementById('gallery');

  function node(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function svg(tag, attributes, ...children) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    made.append(...children);
    return made;
  }

  // ---- controls, kept in the address ----------------------------------------------
  const other = names.length > 1 ? Number(data.baseline === 0) : 0;
  const choices = {
    a: ['Compare', names.map((name, i) => [i, name]), other],
    b: ['with', names.map((name, i) => [i, name]), data.baseline],
    seed: ['Seed', data.seeds.map((seed, i) => [i, seed]), 0],
    show: ['Show', [['all', 'all images'], ['better', 'first is better'],
      ['worse', 'second is better'], ['equal', 'equal']], 'all'],
    class: ['Class', [['all', 'all'], ...data.classes.map((name, i) => [i, name])], 'all'],
    size: ['Box', [['all', 'all sizes'], ['small', 'small, below 32²'],
      ['medium', 'medium'], ['large', 'large, from 96²']], 'all'],
    kind: ['Error', [['all', 'all'], ...data.kinds.map((name, i) => [i, name])], 'all'],
    sort: ['Sort by', [['difference', 'largest difference'],
      ['gain', 'most gained by the first'], ['loss', 'most lost by the first'],
      ['errors', 'most errors of the first'], ['name', 'file name']], 'difference'],
  };
  const controls = {};
  const bar = node('form', { className: 'bar' });
  for (const [key, [label, options, start]] of Object.entries(choices)) {
    const select = node('select', { name: key },
      ...options.map(([value, text]) => node('option', { value, textContent: text })));
    select.value = String(start);
    select.addEventListener('change', () => { limit = PAGE; remember(); load(list); });
    controls[key] = select;
    if (key !== 'seed' || data.seeds.length > 1) {
      bar.append(node('label', {}, `${label} `, select));
    }
  }
  const count = node('p', { className: 'count' });
  const cards = node('div', { className: 'cards' });
  const more = node('button', { type: 'button', textContent: 'Show more' });
  more.addEventListener('click', () => { limit += PAGE; list(); });
  root.append(bar, count, cards, more);
  let limit = PAGE;
  let listed = [];
  let opened = null;

  // ---- detections of a seed, which may be in a separate file ------------------------
  let shown = null;
  function load(then) {
    const seed = controls.seed.value;
    const found = data.found[seed];
    if (shown === seed) {
      then();
    } else if (!found) {
      count.textContent = 'Loading.';
      const file = `report_images/found${seed}.js`;
      const script = node('script', { src: file });
      script.addEventListener('load', () => { if (controls.seed.value === seed) load(then); });
      script.addEventListener('error', () => {
        cards.replaceChildren();
        count.textContent = `${file} cannot be read: it belongs beside this page.`;
      });
      document.head.append(script);
    } else {
      images.forEach((image, i) => {
        image.found = found[i].map(([detections, lost]) => ({
          detections,
          lost: new Map(lost.map((each) => (each < 0 ? [-1 - each, true] : [each, false]))),
        }));
      });
      shown = seed;
      then();
    }
  }

  // what stands for a choice in the address: its name, or its value
  const named = { a: names, b: names, seed: data.seeds };

  function remember() {
    const kept = new URLSearchParams();
    if (opened) kept.set('image', opened.id);
    for (const [key, [, , start]] of Object.entries(choices)) {
      const { value } = controls[key];
      if (value === String(start)) continue;
      kept.set(key, named[key] ? named[key][value] : value);
    }
    const text = kept.toString();
    history.replaceState(null, '', text ? `#${text}` : '#');
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const [key, [, options, start]] of Object.entries(choices)) {
      let value = kept.get(key);
      if (named[key]) value = String(named[key].indexOf(value));
      const known = options.some(([each]) => String(each) === value);
      controls[key].value = known ? value : String(start);
    }
    load(() => {
      list();
      const image = byId.get(kept.get('image'));
      if (image) open(image);
      else if (dialog.open) dialog.close();
    });
  }

  // ---- errors under the filters ---------------------------------------------------
  function counted(box) {
    const { class: label, size } = controls;
    if (label.value !== 'all' && box[LABEL] !== Number(label.value)) return false;
    const area = box[2] * box[3];
    const own = area < 32 ** 2 ? 'small' : area < 96 ** 2 ? 'medium' : 'large';
    return size.value === 'all' || size.value === own;
  }

  function errors(image, u) {
    const { detections, lost } = image.found[u];
    const kind = controls.kind.value;
    const missed = data.kinds.length - 1;
    const positives = detections.filter((box) => box[KIND] >= 0 && counted(box)
      && (kind === 'all' || box[KIND] === Number(kind)));
    const negatives = [...lost].filter(([i, unseen]) => counted(image.objects[i])
      && (kind === 'all' || (unseen && Number(kind) === missed))).map(([i]) => i);
    return { positives: positives.length, negatives, all: positives.length + negatives.length };
  }

  function judge(image) {
    const [a, b] = [errors(image, controls.a.value), errors(image, controls.b.value)];
    const onlyA = b.negatives.filter((i) => !a.negatives.includes(i));
    const onlyB = a.negatives.filter((i) => !b.negatives.includes(i));
    return {
      image, a, b, onlyA, onlyB,
      gain: b.all - a.all,
      difference: onlyA.length + onlyB.length + Math.abs(a.positives - b.positives),
      relevant: image.objects.some(counted) || a.all > 0 || b.all > 0,
    };
  }

  const orders = {
    difference: (x, y) => y.difference - x.difference,
    gain: (x, y) => y.gain - x.gain,
    loss: (x, y) => x.gain - y.gain,
    errors: (x, y) => y.a.all - x.a.all,
    name: (x, y) => (x.image.name < y.image.name ? -1 : 1),
  };

  function list() {
    const show = controls.show.value;
    listed = images.map(judge).filter(({ gain, relevant, a, b }) => relevant
      && (controls.kind.value === 'all' || a.all + b.all > 0)
      && (show === 'all' || (show === 'better' && gain > 0)
        || (show === 'worse' && gain < 0) || (show === 'equal' && gain === 0)));
    listed.sort(orders[controls.sort.value]);
    const better = listed.filter(({ gain }) => gain > 0).length;
    const worse = listed.filter(({ gain }) => gain < 0).length;
    const [a, b] = [names[controls.a.value], names[controls.b.value]];
    count.textContent = `${listed.length} of ${images.length} images. ${a} makes fewer `
      + `errors in ${better}, ${b} in ${worse}.`;
    cards.replaceChildren(...listed.slice(0, limit).map(card));
    more.hidden = listed.length <= limit;
  }

  // ---- drawing ---------------------------------------------------------------------
  function rectangle(box, kind, text) {
    const [x, y, width, height] = box;
    const made = svg('rect', { x, y, width, height, class: kind });
    made.append(svg('title', {}, text));
    return made;
  }

  function picture(image, boxes, lazy) {
    const frame = node('div', { className: 'picture' });
    frame.style.aspectRatio = `${image.width} / ${image.height}`;
    if (image.source) {
      frame.append(node('img', {
        alt: image.name, loading: lazy ? 'lazy' : 'eager', src: image.source,
      }));
    }
    const area = `0 0 ${image.width} ${image.height}`;
    frame.append(svg('svg', { viewBox: area }, ...boxes));
    return frame;
  }

  function card(judged) {
    const { image, a, b, gain, onlyA, onlyB } = judged;
    const [first, second] = [names[controls.a.value], names[controls.b.value]];
    const boxes = [
      ...onlyA.map((i) => rectangle(image.objects[i], 'true', `found by ${first} alone`)),
      ...onlyB.map((i) => rectangle(image.objects[i], 'lost', `found by ${second} alone`)),
    ];
    const sign = gain > 0 ? `${gain} fewer` : gain < 0 ? `${-gain} more` : 'equal';
    const made = node('button', { type: 'button', className: 'card' },
      picture(image, boxes, true),
      node('span', { className: 'name', textContent: image.name }),
      node('span', { textContent: `errors ${a.all} : ${b.all}, ${sign}` }));
    made.dataset.image = image.id;
    made.addEventListener('click', () => { open(image); remember(); });
    return made;
  }

  // ---- one image -------------------------------------------------------------------
  const title = node('h3');
  const panels = node('div', { className: 'panels' });
  const command = node('pre');
  const hint = node('p');
  const commands = 'the commands that show the kernels there and the features of both '
    + 'upsamplers';
  const buttons = [['Previous', -1], ['Next', 1]].map(([text, step]) => {
    const made = node('button', { type: 'button', textContent: text });
    made.addEventListener('click', () => turn(step));
    return made;
  });
  const close = node('button', { type: 'button', textContent: 'Close' });
  const legend = node('p', { className: 'legend' }, ...[['object', 'object'],
    ['true', 'true positive'], ['false', 'false positive'], ['lost', 'not found'],
    ['ignored', 'crowd, not counted']].map(([kind, text]) => node('span', {},
    svg('svg', { viewBox: '0 0 16 12' }, rectangle([2, 2, 12, 8], kind, text)), text)));
  const dialog = node('dialog', {}, node('div', { className: 'head' }, title, ...buttons,
    close), legend, panels, hint, command);
  root.append(dialog);
  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => { opened = null; remember(); });
  dialog.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowLeft') turn(-1);
    if (event.key === 'ArrowRight') turn(1);
  });

  function turn(step) {
    const at = listed.findIndex(({ image }) => image === opened);
    const next = listed[at + step];
    if (next) { open(next.image); remember(); }
  }

  function describe(box) {
    const text = `${data.classes[box[LABEL]]} ${box[SCORE].toFixed(2)}`;
    if (box[KIND] >= 0) return `${text}, ${data.kinds[box[KIND]]} error`;
    return box[KIND] === IGNORED ? `${text}, not counted` : text;
  }

  function panel(image, heading, boxes, caption) {
    return node('figure', {}, node('figcaption', { textContent: heading }),
      picture(image, boxes, false), node('figcaption', { textContent: caption }));
  }

  function found(image, u) {
    const { detections, lost } = image.found[u];
    const kinds = { [TRUE]: 'true', [IGNORED]: 'ignored' };
    const boxes = detections.map((box) => rectangle(box, kinds[box[KIND]] ?? 'false',
      describe(box)));
    for (const [i, unseen] of lost) {
      const box = image.objects[i];
      const text = `${data.classes[box[LABEL]]}, ${unseen ? 'missed' : 'not found'}`;
      boxes.push(rectangle(box, 'lost', text));
    }
    const number = (test) => detections.filter((box) => test(box[KIND])).length;
    const seed = data.seeds.length > 1 ? `, seed ${data.seeds[controls.seed.value]}` : '';
    return panel(image, names[u] + seed, boxes, `TP ${number((k) => k === TRUE)}, `
      + `FP ${number((k) => k >= 0)}, FN ${lost.size}`);
  }

  function open(image) {
    opened = image;
    title.textContent = image.name;
    command.textContent = '';
    hint.textContent = `Select a box to get ${commands}.`;
    const truth = image.objects.map((box) => rectangle(box,
      box[CROWD] ? 'ignored' : 'object', data.classes[box[LABEL]]));
    panels.replaceChildren(
      panel(image, 'ground truth', truth, `${truth.length} objects`),
      ...names.map((_, u) => found(image, u)));
    for (const box of panels.querySelectorAll('rect')) {
      box.addEventListener('click', () => select(image, box));
    }
    if (!dialog.open) dialog.showModal();
    const at = listed.findIndex((each) => each.image === image);
    buttons[0].disabled = at <= 0;
    buttons[1].disabled = at < 0 || at === listed.length - 1;
  }

  function quoted(text) {
    return /^[\w./=:,@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
  }

  function select(image, box) {
    const [x, y, width, height] = ['x', 'y', 'width', 'height'].map(
      (key) => Number(box.getAttribute(key)));
    panels.querySelectorAll('.chosen').forEach((each) => each.classList.remove('chosen'));
    box.classList.add('chosen');
    hint.textContent = `${box.querySelector('title').textContent}: ${commands}`;
    const chosen = [...new Set([controls.a.value, controls.b.value])];
    const runs = chosen.map((u) => quoted(data.upsamplers[u].runs[controls.seed.value]))
      .join(' ');
    const at = `${Math.round(x + width / 2)},${Math.round(y + height / 2)}`;
    const start = 'dlu_mmdet visualize';
    const end = `${runs} --image-ids ${quoted(image.id)}`;
    command.textContent = `${start} kernels ${end} --at ${at}\n${start} upsampling ${end}`;
  }

  window.addEventListener('hashchange', recall);
  recall();
})();
