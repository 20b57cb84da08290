// A microphone and a live session: what is said goes out as it comes, and its text comes back.

const KEY_PROTOCOL = "openai-insecure-api-key.";

export class LiveSession {
  // `on` has delta(text), tentative(text), done(event, samples, rate), failed(message).
  constructor(settings, on) {
    this.settings = settings;
    this.on = on;
    this.samples = [];
    this.waiting = []; // until the session is open
    this.isOpen = false;
    this.isOver = false;
  }

  async start() {
    if (!navigator.mediaDevices) {
      throw new Error("The browser gives no microphone to pages that come neither from localhost nor over https.");
    }
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("/page/recorder.js");
    const recorder = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    recorder.port.onmessage = ({ data }) => (data === null ? this.commit() : this.take(data));
    this.context.createMediaStreamSource(this.stream).connect(recorder);
    this.recorder = recorder;
    this.connect();
  }

  stop() {
    this.recorder?.port.postMessage("stop");
  }

  connect() {
    const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/realtime?intent=transcription`;
    const key = this.settings.key;
    this.socket = new WebSocket(address, key ? ["realtime", KEY_PROTOCOL + key] : ["realtime"]);
    this.socket.onmessage = ({ data }) => this.hear(JSON.parse(data));
    this.socket.onclose = ({ code, reason }) => {
      if (!this.isOver) this.fail(reason || (code === 1006 ? "The server cannot be reached, or wants its API key." : `The session was closed (${code}).`));
    };
  }

  hear(event) {
    if (event.type === "session.created") {
      const format = { type: "audio/pcm", rate: this.context.sampleRate };
      const transcription = { prompt: this.settings.hotwords };
      this.send({ type: "session.update", session: { type: "transcription", audio: { input: { format, transcription, turn_detection: null } } } });
    } else if (event.type === "session.updated") {
      if (event.session.audio.input.format.rate !== this.context.sampleRate) {
        this.fail(`This microphone gives ${this.context.sampleRate} samples a second, which the server does not take.`);
        return;
      }
      this.isOpen = true;
      for (const message of this.waiting.splice(0)) this.send(message);
    } else if (event.type.endsWith("input_audio_transcription.delta")) {
      this.on.delta(event.delta);
    } else if (event.type === "asr_doge.tentative") {
      this.on.tentative(event.text);
    } else if (event.type.endsWith("input_audio_transcription.completed")) {
      this.end();
      this.on.done(event, this.samples, this.context.sampleRate, performance.now() - this.committedAt);
    } else if (event.type.endsWith("input_audio_transcription.failed") || event.type === "error") {
      this.fail(event.error.message);
    }
  }

  take(samples) {
    this.samples.push(samples);
    const pcm = new DataView(new ArrayBuffer(2 * samples.length));
    samples.forEach((sample, index) => pcm.setInt16(2 * index, Math.max(-1, Math.min(1, sample)) * 32767, true));
    let text = "";
    const bytes = new Uint8Array(pcm.buffer);
    for (let start = 0; start < bytes.length; start += 8192) text += String.fromCharCode(...bytes.subarray(start, start + 8192));
    this.queue({ type: "input_audio_buffer.append", audio: btoa(text) });
  }

  commit() {
    this.committedAt = performance.now();
    this.queue({ type: "input_audio_buffer.commit" });
    for (const track of this.stream.getTracks()) track.stop();
  }

  queue(message) {
    if (this.isOpen) this.send(message);
    else this.waiting.push(message);
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  fail(message) {
    this.end();
    this.on.failed(message);
  }

  end() {
    this.isOver = true;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.context?.close();
    this.socket?.close();
  }
}

// A recording of the samples that browsers play.
export function wavFile(parts, rate) {
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, letters) => [...letters].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt "); view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); view.setUint16(22, 1, true); view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const part of parts) for (const sample of part) { view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32767, true); at += 2; }
  return new File([view.buffer], "recording.wav", { type: "audio/wav" });
}
