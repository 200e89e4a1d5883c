// A node's console: a terminal, and the WebSocket of kadeploy/server/consoles.py. Binary messages are bytes, both
// ways; texts are JSON: `size` to the service, `opened`, `refused` and `ended` from it.

import { FitAddon } from "./vendor/xterm/addon-fit.mjs";
import { Terminal } from "./vendor/xterm/xterm.mjs";

const ESCAPE = "\x1b";
const LEAVING = 4; // ESC typed so often leaves, as in kaconsole3
const PIECE = 1 << 16; // bytes of one message; the service takes a MiB at most
const PENDING = 4 << 20; // bytes that wait to be drawn; a browser cannot ask a WebSocket to wait

const place = document.getElementById("console");
const state = document.getElementById("state");
const leave = document.getElementById("leave");
const again = document.getElementById("again");
const { socket: path, node, part, user, program } = place.dataset;

const RESET = `${ESCAPE}[0m`;
const CLOSED = "Console closed.";
const ENDS = {
  ended: ({ status }) => (status ? `Console closed: ${program} ended with status ${status}.` : CLOSED),
  revoked: ({ message }) =>
    message
      ? `Console closed. ${message}`
      : `Console closed: ${user} does not have the right to use ${part} of ${node} any more.`,
  unchecked: () => "Console closed: the rights to it cannot be looked up. Tell the site's administrators.",
  lost: () => "Console closed: the connection to it is lost. Open the console again.",
};

keepStylePolicy();
const terminal = new Terminal({ fontSize: 14, minimumContrastRatio: 4.5 });
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(place);
fit.fit();

const socket = new WebSocket(new URL(path, location.href.replace(/^http/, "ws")));
socket.binaryType = "arraybuffer";
let said = ""; // why it is over; empty as long as it is not
let pending = 0;
let missed = 0; // bytes that were left out since the reader was last told
let escapes = 0;

tell("The console is being opened.");
socket.addEventListener("open", sendSize);
socket.addEventListener("message", ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : show(data)));
socket.addEventListener("close", ({ reason }) => close(said || lost(reason)));
leave.addEventListener("click", () => close(CLOSED));
terminal.onData(type);
terminal.onBinary((keys) => send(Uint8Array.from(keys, (key) => key.charCodeAt(0))));
terminal.onResize(sendSize);
new ResizeObserver(() => fit.fit()).observe(place);

function hear(message) {
  if (message.type === "opened") {
    tell(`Console of ${message.node}.`);
    leave.hidden = false;
    terminal.focus();
  } else {
    said = message.type === "refused" ? message.message : (ENDS[message.reason] ?? ENDS.lost)(message);
  }
}

function show(data) {
  if (pending > PENDING) {
    missed += data.byteLength; // more than can be drawn, or read
    return;
  }
  tellMissed();
  draw(new Uint8Array(data));
}

// The reader learns how much is missing, at the place where it is missing.
function tellMissed() {
  if (!missed) return;
  const count = missed.toLocaleString("en");
  missed = 0;
  draw(new TextEncoder().encode(`${RESET}\r\n[${count} bytes were left out here: they came faster than they can be shown]\r\n`));
}

function draw(bytes) {
  pending += bytes.byteLength;
  terminal.write(bytes, () => {
    pending -= bytes.byteLength;
    if (!pending) tellMissed(); // nothing more has come since
  });
}

function type(keys) {
  escapes = [...keys].reduce((count, key) => (key === ESCAPE ? count + 1 : 0), escapes);
  if (keys === ESCAPE && escapes >= LEAVING) close(CLOSED);
  else send(new TextEncoder().encode(keys));
}

function send(bytes) {
  if (socket.readyState !== WebSocket.OPEN) return;
  for (let start = 0; start < bytes.length; start += PIECE) socket.send(bytes.subarray(start, start + PIECE));
}

function sendSize() {
  if (socket.readyState !== WebSocket.OPEN) return;
  socket.send(JSON.stringify({ type: "size", rows: terminal.rows, columns: terminal.cols }));
}

function lost(reason) {
  return reason ? `Console closed: ${reason}.` : ENDS.lost();
}

function close(why) {
  said = why;
  socket.close(1000);
  terminal.options.disableStdin = true;
  leave.hidden = true;
  again.hidden = false;
  if (place.contains(document.activeElement)) again.focus();
  state.className = why === CLOSED ? "done" : "notice";
  tell(why);
}

function tell(text) {
  state.textContent = text;
}

// The page's policy (CSP) takes styles from our own files alone. xterm.js writes some into <style> elements and into
// style attributes: these go the way of scripts instead, which the policy allows, so that it need not be loosened.
function keepStylePolicy() {
  const create = document.createElement.bind(document);
  document.createElement = (name, ...options) => (name === "style" ? sheet(create("span")) : create(name, ...options));
  const set = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style") this.style.cssText = value;
    else set.call(this, name, value);
  };
}

function sheet(element) {
  const rules = new CSSStyleSheet();
  document.adoptedStyleSheets.push(rules);
  Object.defineProperty(element, "textContent", { set: (text) => rules.replaceSync(text) });
  return element;
}
