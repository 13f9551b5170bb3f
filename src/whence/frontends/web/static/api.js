// Requests to the server. A new request aborts an earlier one of the same kind.

const underWay = new Map();

// abort pending requests of one kind, or all
export function drop(kind) {
  for (const [name, control] of underWay) if (kind === undefined || name === kind) control.abort();
}

// Send a question and return its answer; with `progress`, a function of (done, total), the server reports it as it computes.
export async function ask(path, question, { kind = path, progress } = {}) {
  underWay.get(kind)?.abort();
  const control = new AbortController();
  underWay.set(kind, control);
  const response = await fetch(`api/${path}`, {
    method: question === undefined ? "GET" : "POST",
    headers: question === undefined ? {} : { "content-type": "application/json", ...(progress ? { accept: "text/event-stream" } : {}) },
    body: question === undefined ? undefined : JSON.stringify(question),
    signal: control.signal,
  });
  const type = response.headers.get("content-type") ?? "";
  if (response.ok && type.startsWith("text/event-stream")) return events(response, progress);
  if (response.ok) return type.startsWith("application/json") ? response.json() : response.blob();
  const said = await response.text();
  let message = said;
  try {
    message = JSON.parse(said).error;
  } catch { /* plain text */ }
  throw new Error(message);
}

// read server-sent events up to the answer
async function events(response, progress) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server stopped before it answered; try again");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const [, name, data] = part.match(/^event: (\w+)\ndata: (.*)$/s), content = JSON.parse(data);
      if (name === "answer") return content;
      if (name === "error") throw new Error(content.error);
      progress(content.done, content.total);
    }
  }
}

export function numbers({ shape, data }) {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  return { shape, values: new Float32Array(bytes.buffer) };
}

export function base64(bytes) {
  let letters = "";
  for (let i = 0; i < bytes.length; i += 0x8000) letters += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(letters);
}
