// Requests to the server. A new request aborts an earlier one of the same kind.

const underWay = new Map();

// abort pending requests of one kind, or all
export function drop(kind) {
  for (const [name, control] of underWay) if (kind === undefined || name === kind) control.abort();
}

export async function ask(path, question, kind = path) {
  underWay.get(kind)?.abort();
  const control = new AbortController();
  underWay.set(kind, control);
  const response = await fetch(`api/${path}`, {
    method: question === undefined ? "GET" : "POST",
    headers: question === undefined ? {} : { "content-type": "application/json" },
    body: question === undefined ? undefined : JSON.stringify(question),
    signal: control.signal,
  });
  if (response.ok) return response.headers.get("content-type").startsWith("application/json") ? response.json() : response.blob();
  const said = await response.text();
  let message = said;
  try {
    message = JSON.parse(said).error;
  } catch { /* plain text */ }
  throw new Error(message);
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
