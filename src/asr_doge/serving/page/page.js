// The page: a file or a microphone in, words that can be played and saved out.

import { LiveSession, wavFile } from "/page/live.js";

const at = (id) => document.getElementById(id);
const [drop, file, talk, statusLine, transcript, tentative, player] = ["drop", "file", "talk", "status", "transcript", "tentative", "player"].map(at);
const SURE = 0.8, FAIR = 0.5; // of a word's confidence
const PRESS_MS = 350; // a shorter press of the button starts, and the next one stops

let recording = null; // the File that was transcribed
let result = null; // its reply
let session = null;
let pressedAt = 0;
let model = "whisper-1";

function say(text, isError = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("error", isError);
}

function key() { return at("key").value.trim(); }

function askForKey() {
  at("key-label").hidden = false;
  at("key").focus();
}

function form(format) {
  const fields = new FormData();
  fields.append("model", model);
  fields.append("response_format", format);
  fields.append("prompt", at("hotwords").value);
  for (const kind of ["word", "segment"]) fields.append("timestamp_granularities[]", kind);
  fields.append("file", recording, recording.name);
  return fields;
}

async function request(format) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  const reply = await fetch("/v1/audio/transcriptions", { method: "POST", body: form(format), headers });
  if (reply.ok) return reply;
  if (reply.status === 401) askForKey();
  const { error } = await reply.json().catch(() => ({ error: { message: `The server answered ${reply.status}.` } }));
  throw new Error(error.message);
}

function clear() {
  result = null;
  transcript.replaceChildren();
  tentative.textContent = "";
  player.hidden = true;
  at("results").hidden = true;
}

async function transcribeFile(chosen) {
  clear();
  recording = chosen;
  say(`Transcribing ${chosen.name} …`);
  const began = performance.now();
  try {
    const body = await (await request("verbose_json")).json();
    show(body, performance.now() - began, "");
  } catch (error) {
    say(error.message, true);
  }
}

function show(body, milliseconds, how) {
  result = body;
  const seconds = milliseconds / 1000;
  const speed = body.duration / seconds;
  const times = speed < 10 ? speed.toFixed(1) : Math.round(speed);
  const fast = how || `${seconds.toFixed(2)} s (${times}× as fast as speech)`;
  say(`${recording.name}: ${body.duration.toFixed(1)} s of sound, ${fast}, model ${at("model").dataset.name}.${body.text ? "" : " No speech was heard."}${(body.warnings ?? []).map((line) => ` ${line}`).join("")}`);
  const words = body.words?.length ? body.words : body.text.split(/\s+/).filter(Boolean).map((word) => ({ word }));
  transcript.replaceChildren(...words.flatMap((word) => [wordButton(word), " "]));
  tentative.textContent = "";
  player.src = URL.createObjectURL(recording);
  player.hidden = false;
  at("results").hidden = false;
}

function wordButton(word) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "word";
  button.textContent = word.word;
  if (word.confidence != null) {
    button.classList.add(word.confidence >= SURE ? "sure" : word.confidence >= FAIR ? "fair" : "unsure");
    button.title = `${Math.round(100 * word.confidence)} % sure, at ${word.start.toFixed(2)} s`;
  }
  if (word.start != null) {
    button.dataset.start = word.start;
    button.dataset.end = word.end;
    button.addEventListener("click", () => { player.currentTime = word.start; player.play(); });
  }
  return button;
}

player.addEventListener("timeupdate", () => {
  for (const word of transcript.children) {
    word.classList.toggle("playing", !player.paused && player.currentTime >= word.dataset.start && player.currentTime < word.dataset.end);
  }
});

file.addEventListener("change", () => { if (file.files[0]) transcribeFile(file.files[0]); file.value = ""; });
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files[0]) transcribeFile(event.dataTransfer.files[0]);
});

function setTalking(isTalking) {
  talk.setAttribute("aria-pressed", String(isTalking));
  at("talk-label").textContent = isTalking ? "Listening …" : "Hold to speak";
}

async function startTalking() {
  pressedAt = performance.now();
  clear();
  setTalking(true);
  say("Listening …");
  let heard = "";
  const mine = session = new LiveSession({ key: key(), hotwords: at("hotwords").value }, {
    delta: (text) => { heard += text; transcript.textContent = heard; },
    tentative: (text) => { tentative.textContent = text; },
    done: (event, samples, rate, milliseconds) => {
      recording = wavFile(samples, rate);
      const words = event.words, duration = event.usage.seconds;
      over(mine);
      show({ task: "transcribe", text: event.transcript, duration, words }, milliseconds, `text ${Math.round(milliseconds)} ms after the end`);
    },
    failed: (message) => { over(mine); if (message.includes("API key")) askForKey(); say(message, true); },
  });
  try {
    await mine.start();
  } catch (error) {
    mine.end();
    over(mine);
    say(error.name === "NotAllowedError" ? "The browser was not allowed to use the microphone." : error.message, true);
  }
}

function over(which) {
  if (session === which) session = null;
  setTalking(false);
}

function stopTalking() {
  say("Finishing …");
  session?.stop();
  setTalking(false);
}

function press() {
  if (session) { pressedAt = 0; stopTalking(); } else startTalking();
}

function release() {
  if (session && pressedAt && performance.now() - pressedAt > PRESS_MS) stopTalking();
}

const isPressing = (event) => (event.key === " " || event.key === "Enter") && !event.repeat;
talk.addEventListener("pointerdown", (event) => { if (event.button === 0) { talk.setPointerCapture(event.pointerId); press(); } });
talk.addEventListener("pointerup", release);
talk.addEventListener("pointercancel", release);
talk.addEventListener("contextmenu", (event) => event.preventDefault());
talk.addEventListener("keydown", (event) => { if (event.key === " " || event.key === "Enter") event.preventDefault(); if (isPressing(event)) press(); });
talk.addEventListener("keyup", (event) => { if (event.key === " " || event.key === "Enter") release(); });

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

at("downloads").addEventListener("click", async ({ target }) => {
  const format = target.dataset.format;
  if (!format || !result) return;
  const name = `${recording.name.replace(/\.[^.]*$/, "")}.${format}`;
  try {
    if (format === "txt") save(name, `${result.text}\n`, "text/plain");
    else if (format === "json") save(name, `${JSON.stringify(result, null, 2)}\n`, "application/json");
    else save(name, await (await request(format)).text(), "text/plain");
  } catch (error) {
    say(error.message, true);
  }
});

fetch("/readyz").then((reply) => reply.json()).then((state) => {
  model = state.model;
  at("model").dataset.name = state.model;
  at("model").textContent = `model ${state.model}`;
  if (state.needs_key) at("key-label").hidden = false;
}).catch(() => say("The server cannot be reached.", true));
