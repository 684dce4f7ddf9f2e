// Sound: the microphone and files become clips, with their waveform and length.
// A clip is {blob, format, seconds, peaks, transcript}.

import { element } from "/page/dom.js";
import { word } from "/page/words.js";

export const SAMPLE_RATE = 16000;
export const MAX_RECORDING_SECONDS = 600;
const PEAKS = 160;
// What the server decodes itself; anything else is decoded here and sent as WAV.
const SENT_AS_IT_IS = { wav: "wav", mp3: "mp3", flac: "flac", ogg: "ogg" };

export class Recording {
  static async start(onLevel, onEnd) {
    if (!navigator.mediaDevices || !window.AudioWorkletNode) throw new Error(word("no_microphone"));
    const recording = new Recording();
    recording.stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
    try {
      recording.context = new AudioContext();
      await recording.context.audioWorklet.addModule("/page/recorder_worklet.js");
    } catch (error) {
      recording.release();
      throw error;
    }
    recording.blocks = [];
    recording.length = 0;
    recording.node = new AudioWorkletNode(recording.context, "recorder", { numberOfOutputs: 0 });
    recording.ended = new Promise((resolve) => {
      recording.node.port.onmessage = (event) => {
        if (event.data === null) return resolve();
        recording.blocks.push(event.data);
        recording.length += event.data.length;
        onLevel(recording.length / recording.context.sampleRate);
        if (recording.length > MAX_RECORDING_SECONDS * recording.context.sampleRate) onEnd();
      };
    });
    for (const track of recording.stream.getTracks()) track.onended = onEnd;
    recording.context.createMediaStreamSource(recording.stream).connect(recording.node);
    return recording;
  }

  async stop() {
    this.node.port.postMessage("stop");
    await this.ended;
    const rate = this.context.sampleRate;
    this.release();
    if (!this.length) throw new Error(word("nothing_recorded"));
    const samples = new Float32Array(this.length);
    let offset = 0;
    for (const block of this.blocks) {
      samples.set(block, offset);
      offset += block.length;
    }
    return wavClip(await resample(samples, rate));
  }

  release() {
    for (const track of this.stream.getTracks()) track.stop();
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}

export async function clipOfFile(file) {
  const content = await file.arrayBuffer();
  if (!content.byteLength) throw new Error(`${file.name}: ${word("file_empty")}`);
  const kind = kindOf(new Uint8Array(content, 0, Math.min(16, content.byteLength)));
  let samples = null;
  try {
    samples = await decode(content.slice(0));
  } catch {
    // The browser lacks the codec; the server may have it.
  }
  if (kind in SENT_AS_IT_IS || (samples === null && kind)) {
    const summary = samples ? { seconds: samples.length / SAMPLE_RATE, peaks: peaksOf(samples) } : { seconds: null, peaks: [] };
    return { blob: new Blob([content]), format: kind, transcript: "", ...summary };
  }
  if (samples === null) throw new Error(`${file.name}: ${word("file_not_sound")}`);
  return wavClip(samples);
}

export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const pieces = [];
  for (let start = 0; start < bytes.length; start += 0x8000) {
    pieces.push(String.fromCharCode(...bytes.subarray(start, start + 0x8000)));
  }
  return btoa(pieces.join(""));
}

// Shows a clip: waveform, length, player, and what the caller adds. Its URL is freed with `release`.
export function clipView(clip, ...more) {
  const canvas = element("canvas", { width: 320, height: 64, role: "img" });
  const length = clip.seconds === null ? word("length_unknown") : `${clip.seconds.toFixed(1)} s`;
  canvas.setAttribute("aria-label", `${word("waveform")}, ${length}`);
  drawPeaks(canvas, clip.peaks);
  const url = URL.createObjectURL(clip.blob);
  const player = element("audio", { controls: true, src: url, preload: "metadata" });
  player.setAttribute("aria-label", word("play_clip"));
  const view = element("div", { class: "clip" }, canvas, element("span", { class: "seconds", text: length }), player, ...more);
  view.player = player;
  view.release = () => URL.revokeObjectURL(url);
  return view;
}

export function drawPeaks(canvas, peaks) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent") || "#0b5cad";
  const step = width / Math.max(peaks.length, 1);
  peaks.forEach((peak, index) => {
    const size = Math.max(1, peak * height);
    context.fillRect(index * step, (height - size) / 2, Math.max(1, step - 1), size);
  });
}

export function peaksOf(samples) {
  const size = Math.max(1, Math.ceil(samples.length / PEAKS));
  const peaks = [];
  for (let start = 0; start < samples.length; start += size) {
    let peak = 0;
    for (let index = start; index < Math.min(start + size, samples.length); index++) peak = Math.max(peak, Math.abs(samples[index]));
    peaks.push(Math.min(1, peak));
  }
  return peaks;
}

function wavClip(samples) {
  const blob = new Blob([wavHeader(samples.length), toInt16(samples)], { type: "audio/wav" });
  return { blob, format: "wav", seconds: samples.length / SAMPLE_RATE, peaks: peaksOf(samples), transcript: "" };
}

function wavHeader(count) {
  const view = new DataView(new ArrayBuffer(44));
  const text = (offset, letters) => [...letters].forEach((letter, index) => view.setUint8(offset + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, SAMPLE_RATE, true);
  view.setUint32(28, 2 * SAMPLE_RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * count, true);
  return view.buffer;
}

function toInt16(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, index) => view.setInt16(2 * index, Math.max(-32768, Math.min(32767, Math.round(sample * 32768))), true));
  return view.buffer;
}

async function resample(samples, rate) {
  if (rate === SAMPLE_RATE) return samples;
  const context = new OfflineAudioContext(1, Math.max(1, Math.round((samples.length * SAMPLE_RATE) / rate)), SAMPLE_RATE);
  const buffer = context.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

// Decodes to 16 kHz; the first channel, as the model hears it.
async function decode(content) {
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE);
  return (await context.decodeAudioData(content)).getChannelData(0);
}

function kindOf(bytes) {
  const text = String.fromCharCode(...bytes);
  if (/^(RIFF|RF64)....WAVE/s.test(text)) return "wav";
  if (text.startsWith("fLaC")) return "flac";
  if (text.startsWith("OggS")) return "ogg";
  if (text.startsWith("ID3") || (bytes[0] === 0xff && (bytes[1] & 0xe6) === 0xe2)) return "mp3";
  if (text.slice(4, 8) === "ftyp") return "m4a";
  if (text.startsWith("\x1aE\xdf\xa3")) return "webm";
  return "";
}
