// The page of the live view. A message with a frame is laid out as cotracker_ros/live/frames.py
// says; a row of a track as the README says.
'use strict';

const ROW = 32;            // bytes of a track
const VISIBLE = 1;         // bit of its flags
const TAIL = 16;           // past positions that are drawn
const REACH = 12;          // CSS pixels between a click and the point that it means
const byId = (id) => document.getElementById(id);
const canvas = byId('picture');
const pen = canvas.getContext('2d');

let socket = null;
let shown = null;          // the frame on the canvas: {header, tracks, bitmap}
let pointer = null;        // CSS pixels of the mouse in the canvas
let paused = false;
let skeleton = null;       // keypoints and limbs of a body and their colours, from the server
const tails = new Map();   // id -> [{x, y, visible}], newest last

function connect() {
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  socket = new WebSocket(`${scheme}://${location.host}/live`);
  socket.binaryType = 'arraybuffer';
  socket.onmessage = (event) => {
    if (typeof event.data === 'string') tell(JSON.parse(event.data));
    else receive(event.data);
  };
  socket.onclose = () => {
    state('stale', 'no connection to the live view; trying again');
    setTimeout(connect, 1000);
  };
}

function send(command) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(command));
}

function state(level, message) {
  byId('level').textContent = level;
  byId('level').className = level;
  byId('message').textContent = message;
}

function say(text, bad) {
  byId('said').textContent = text;
  byId('said').className = bad ? 'bad' : '';
}

function tell(message) {
  if (message.say !== undefined) say(message.say, message.bad);
  if (!message.report) return;
  const report = message.report;
  paused = report.paused;
  byId('pause').textContent = paused ? 'Go on' : 'Pause';
  byId('pause').setAttribute('aria-pressed', paused);
  byId('rate').textContent = `${report.rate.toFixed(1)} /s`;
  state(report.level, paused ? `paused; ${report.message}` : report.message);
  byId('values').replaceChildren(...Object.entries(report.values).map(([name, value]) => {
    const row = document.createElement('tr');
    for (const text of [name, value]) {
      row.appendChild(document.createElement('td')).textContent = text;
    }
    return row;
  }));
}

function parse(buffer) {
  const view = new DataView(buffer);
  const length = view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const tracks = [];
  const colours = 4 + length + ROW * header.points;
  for (let n = 0; n < header.points; n++) {
    const at = 4 + length + ROW * n;
    tracks.push({
      x: view.getFloat32(at, true), y: view.getFloat32(at + 4, true),
      id: view.getUint32(at + 12, true),
      visibility: view.getFloat32(at + 16, true), confidence: view.getFloat32(at + 20, true),
      visible: (view.getUint32(at + 24, true) & VISIBLE) !== 0,
      keypoint: view.getUint8(at + 25) - 1, instance: view.getUint16(at + 26, true),
      age: view.getUint32(at + 28, true),
      colour: `#${view.getUint32(colours + 4 * n, true).toString(16).padStart(6, '0')}`,
    });
  }
  return { header, tracks, bodies: bodies(tracks), picture: new Blob([new Uint8Array(buffer, colours + 4 * header.points)]) };
}

// The keypoints of each person: instance -> {keypoint: track}. They take the colours of their side.
function bodies(tracks) {
  const found = new Map();
  for (const track of tracks) {
    if (!track.instance || !skeleton || !skeleton.keypoint_colours[track.keypoint]) continue;
    if (!found.has(track.instance)) found.set(track.instance, {});
    found.get(track.instance)[track.keypoint] = track;
    track.colour = skeleton.keypoint_colours[track.keypoint];
    track.joint = true;
  }
  return found;
}

async function receive(buffer) {
  const frame = parse(buffer);
  try {
    frame.bitmap = await createImageBitmap(frame.picture);
  } catch (error) {
    say(`the browser cannot read the picture: ${error.message}`, true);
    send({ do: 'shown' });
    return;
  }
  frame.header.size ||= [frame.bitmap.width, frame.bitmap.height];
  if (shown) shown.bitmap.close();
  if (shown && earlier(frame.header.stamp, shown.header.stamp)) tails.clear();
  shown = frame;
  remember(frame);
  byId('waiting').hidden = true;
  byId('age').textContent = frame.header.age === null ? '– ms' : `${(1000 * frame.header.age).toFixed(0)} ms`;
  const seen = frame.tracks.filter((track) => track.visible).length;
  byId('points').textContent = frame.header.tracked
    ? `${seen} of ${frame.tracks.length} points seen` : 'no tracks';
  // A tab in the background draws nothing, reports nothing shown and so receives nothing.
  requestAnimationFrame(() => { draw(); send({ do: 'shown' }); });
}

function earlier(a, b) {
  return a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);
}

function remember(frame) {
  const present = new Set(frame.tracks.map((track) => track.id));
  for (const id of tails.keys()) if (!present.has(id)) tails.delete(id);
  for (const { id, x, y, visible } of frame.tracks) {
    if (!tails.has(id)) tails.set(id, []);
    const tail = tails.get(id);
    tail.push({ x, y, visible });
    if (tail.length > TAIL + 1) tail.shift();
  }
}

// The canvas has the pixels of the screen, so that points are sharp however large it is shown.
function fit() {
  const [width, height] = shown.header.size;
  const room = canvas.parentElement.getBoundingClientRect();
  const scale = Math.min(room.width / width, room.height / height);
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.floor(width * scale)), Math.max(1, Math.floor(height * scale))];
  canvas.style.width = `${w}px`;
  canvas.style.height = `${h}px`;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
  }
  return [canvas.width / width, canvas.height / height];
}

function draw() {
  if (!shown) return;
  const [sx, sy] = fit();
  // (0, 0) of a track is the centre of the first pixel, of a canvas its corner.
  const at = (p) => [(p.x + 0.5) * sx, (p.y + 0.5) * sy];
  pen.drawImage(shown.bitmap, 0, 0, canvas.width, canvas.height);
  const unit = window.devicePixelRatio || 1;
  for (const track of shown.tracks) {
    const tail = track.joint ? [] : tails.get(track.id) || [];
    pen.strokeStyle = track.colour;
    pen.globalAlpha = 0.75;
    for (let n = 1; n < tail.length; n++) {
      pen.lineWidth = (tail[n - 1].visible && tail[n].visible ? 2.5 : 1) * unit;
      pen.beginPath();
      pen.moveTo(...at(tail[n - 1]));
      pen.lineTo(...at(tail[n]));
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }
  drawLimbs(at, unit);
  const near = nearest();
  for (const track of shown.tracks) {
    const radius = (track === near ? 7 : 4) * unit;
    pen.beginPath();
    pen.arc(...at(track), radius, 0, 2 * Math.PI);
    pen.lineWidth = 3 * unit;
    pen.strokeStyle = '#101010';
    pen.stroke();
    if (track.visible) {
      pen.fillStyle = track.colour;
      pen.fill();
    } else {  // a point that is hidden is a ring
      pen.lineWidth = 1.5 * unit;
      pen.strokeStyle = track.colour;
      pen.stroke();
    }
  }
  canvas.classList.toggle('on-point', near !== null);
  byId('hover').hidden = near === null;
  if (near) {
    const name = near.joint ? `${skeleton.keypoints[near.keypoint]} of ${near.instance}, ` : '';
    byId('hover').textContent = `${name}point ${near.id} at ${near.x.toFixed(1)}, ${near.y.toFixed(1)}: `
      + `${near.visible ? 'seen' : 'hidden'}, visibility ${near.visibility.toFixed(2)}, `
      + `confidence ${near.confidence.toFixed(2)}, ${near.age} frames old`;
  }
}

function drawLimbs(at, unit) {
  for (const body of shown.bodies.values()) {
    skeleton.limbs.forEach(([one, other], n) => {
      if (!body[one] || !body[other]) return;
      pen.strokeStyle = skeleton.limb_colours[n];
      pen.lineWidth = (body[one].visible && body[other].visible ? 4 : 1.5) * unit;
      pen.beginPath();
      pen.moveTo(...at(body[one]));
      pen.lineTo(...at(body[other]));
      pen.stroke();
    });
  }
}

// Pixels of the camera image under CSS pixels of the canvas.
function imagePoint([left, top]) {
  const [width, height] = shown.header.size;
  const box = canvas.getBoundingClientRect();
  return [left / box.width * width - 0.5, top / box.height * height - 0.5];
}

function nearest() {
  if (!shown || !pointer) return null;
  const [x, y] = imagePoint(pointer);
  const scale = canvas.getBoundingClientRect().width / shown.header.size[0];
  let best = null, least = REACH / scale;
  for (const track of shown.tracks) {
    const distance = Math.hypot(track.x - x, track.y - y);
    if (distance <= least) [best, least] = [track, distance];
  }
  return best;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  pointer = [event.clientX - box.left, event.clientY - box.top];
}

canvas.addEventListener('pointermove', (event) => { place(event); draw(); });
canvas.addEventListener('pointerleave', () => { pointer = null; draw(); });
canvas.addEventListener('click', (event) => {
  if (!shown) return;
  place(event);
  const near = nearest();
  if (near) {
    send({ do: 'remove', id: near.id });
  } else {
    const [x, y] = imagePoint(pointer);
    send({ do: 'add', x, y, stamp: shown.header.stamp });
  }
});
byId('clear').addEventListener('click', () => send({ do: 'clear' }));
byId('resample').addEventListener('click', () => send({ do: 'resample' }));
byId('pause').addEventListener('click', () => send({ do: 'enable', on: paused }));
window.addEventListener('resize', draw);
fetch('skeleton.json').then((answer) => answer.json()).then((content) => { skeleton = content; });
connect();
