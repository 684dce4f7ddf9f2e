// Hands the first channel of what the microphone hears to the page, about ten times a second.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.blocks = [];
    this.length = 0;
    this.running = true;
    this.port.onmessage = () => {
      this.send();
      this.running = false;
      this.port.postMessage(null);
    };
  }

  send() {
    if (!this.length) return;
    const samples = new Float32Array(this.length);
    let offset = 0;
    for (const block of this.blocks) {
      samples.set(block, offset);
      offset += block.length;
    }
    this.blocks = [];
    this.length = 0;
    this.port.postMessage(samples, [samples.buffer]);
  }

  process(inputs) {
    const channel = inputs[0][0];
    if (channel && this.running) {
      this.blocks.push(channel.slice());
      this.length += channel.length;
      if (this.length >= sampleRate / 10) this.send();
    }
    return this.running;
  }
}

registerProcessor("recorder", Recorder);
