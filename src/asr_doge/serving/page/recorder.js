// Hands what the microphone gives to the page, a tenth of a second at a time.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = new Float32Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.port.onmessage = () => {
      this.port.postMessage(this.held.slice(0, this.filled));
      this.port.postMessage(null); // that was the last
      this.filled = 0;
    };
  }

  process([input]) {
    for (const sample of input[0] ?? []) {
      this.held[this.filled++] = sample;
      if (this.filled === this.held.length) {
        this.port.postMessage(this.held.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
