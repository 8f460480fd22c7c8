// The live part of the page: `element` and `props` come from gradio, /live is the route of serve/live.py.
const [button, typed, words, note] = ["button", "textarea", ".words", ".note"].map((one) => element.querySelector(one));
let session = null;

function begin(query = "") {
  const socket = new WebSocket(`${location.origin.replace("http", "ws")}/live${query}`);
  const mine = { socket, send: (some) => opened.then(() => socket.readyState === 1 && socket.send(some)) };
  const opened = new Promise((resolve) => socket.addEventListener("open", resolve));
  socket.onmessage = ({ data }) => {
    const { text = "", error } = JSON.parse(data);
    if (session !== mine) return;
    words.textContent += text;
    if (error) fail(error);
  };
  socket.onclose = () => { if (session === mine) end(); };
  words.textContent = note.textContent = "";
  session = mine;
  return mine;
}

function fail(error) {
  note.textContent = typeof error === "string" ? error : error.message || JSON.stringify(error);
}

function end() {
  session?.stop?.();
  session = null;
  if (button) button.textContent = "Speak";
}

const WORKLET = `registerProcessor("pieces", class extends AudioWorkletProcessor {
  process([[samples]]) { if (samples) this.port.postMessage(samples.slice()); return true; }
});`;

async function speak() {
  const plain = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const sound = await navigator.mediaDevices.getUserMedia({ audio: plain });
  const context = new AudioContext();
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" })));
  const pieces = new AudioWorkletNode(context, "pieces");
  const mine = begin(`?sampling_rate=${context.sampleRate}`);
  let held = [];
  const flush = () => { mine.send(Int16Array.from(held)); held = []; };
  pieces.port.onmessage = ({ data }) => {
    for (const sample of data) held.push(32767 * Math.max(-1, Math.min(1, sample)));
    if (held.length >= context.sampleRate / 10) flush();
  };
  mine.stop = () => {
    mine.stop = null;
    sound.getTracks().forEach((track) => track.stop());
    return context.close();
  };
  mine.finish = () => mine.stop().then(() => { flush(); mine.send('{"end": true}'); });
  context.createMediaStreamSource(sound).connect(pieces);
  button.textContent = "Stop";
}

if (button) button.onclick = () => { session ? session.stop && session.finish() : speak().catch(fail); };

if (typed) {
  let sent = "";
  const send = () => {
    if (!session || !typed.value.startsWith(sent)) {
      session?.socket.close();
      begin();
      sent = "";
    }
    session.send(JSON.stringify({ text: typed.value.slice(sent.length) }));
    sent = typed.value;
  };
  typed.oninput = send;
  typed.onkeydown = (event) => {
    if (event.key !== "Enter" || !session) return;
    event.preventDefault();
    session.send('{"end": true}');
    typed.select(); // so that the next text takes its place
  };
}
