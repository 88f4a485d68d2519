// @ts-check
// The HTTP API, as the page uses it. Addresses are relative: the page also works below a path prefix.

import { EventReader } from "./events.js";

/** @typedef {{role: "user" | "assistant", content: string}} Message */
/** @typedef {{id: string, provider: string, demo: boolean, instructions: string}} Model */

/**
 * A failure in words for the person. `kind` decides what the page offers. "sign-in": the proxy in front of the server
 * wants the person to sign in, and nothing of the request got past it. "token": the server itself knows nobody by it.
 */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {"sign-in" | "token" | "retry" | "request"} kind
   */
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

// For what the server knows at once. Without a limit a connection that died in silence would leave the page without models.
const AT_ONCE_MS = 15_000;
// An open stream says something at least every 15 s (`heartbeat_s` of the server). Longer silence is a connection that died unnoticed,
// as when a telephone leaves the house's network.
const SILENCE_MS = 40_000;
const LONGEST_WAIT_S = 600;
const SILENT = "The server does not answer.";
const UNREACHABLE = "The server cannot be reached. Are you connected?";
const BROKEN = "The connection broke before the answer was complete.";

/**
 * Who the gateway takes this browser for. Throws `ApiError`: of kind "sign-in" or "token" when it is nobody.
 *
 * @param {string} token "" when the person has none: behind the sign-in proxy none is needed
 * @returns {Promise<{email: string, signedIn: boolean}>} `signedIn`: the proxy vouches for the person
 */
export async function whoAmI(token) {
  const me = await (await request("api/me", token, { signal: deadline(AT_ONCE_MS) })).json();
  return { email: String(me.email ?? ""), signedIn: me.door === "browser" };
}

/**
 * As `AbortSignal.timeout`, which the browsers of old phones do not have (Safari before 16).
 *
 * @param {number} ms
 */
function deadline(ms) {
  const controller = new AbortController();
  setTimeout(() => controller.abort(new DOMException("", "TimeoutError")), ms);
  return controller.signal;
}

/**
 * The models one can chat with. `instructions` is what the operator tells a model first, "" for nothing.
 *
 * @param {string} token "" when the person has none
 * @returns {Promise<Model[]>}
 */
export async function listModels(token) {
  const response = await request("v1/models", token, { signal: deadline(AT_ONCE_MS) });
  const body = await response.json();
  const chats = body.data.filter((/** @type {any} */ item) => item.hearth?.kind === "chat");
  return chats.map((/** @type {any} */ item) => ({
    id: String(item.id),
    provider: String(item.owned_by),
    demo: item.hearth.demo === true,
    instructions: String(item.hearth.system_prompt ?? ""),
  }));
}

/**
 * Ask, and yield the answer piece by piece; the last has no text, but why the answer ended ("stop", "length", "content_filter").
 * Throws `ApiError`, also after some pieces. Aborting `signal` ends the iteration with the browser's AbortError.
 *
 * @param {string} token
 * @param {string} model
 * @param {Message[]} messages
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{text: string, end: string}, void>}
 */
export async function* ask(token, model, messages, signal) {
  const response = await request("v1/chat/completions", token, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true }),
    signal,
  });
  if (!response.body) throw new ApiError(BROKEN, "retry");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const events = new EventReader();
  let end = "";
  try {
    while (true) {
      const { done, value } = await read(reader, signal);
      for (const data of events.feed(value ?? "")) {
        if (data === "[DONE]") {
          yield { text: "", end };
          return;
        }
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(String(chunk.error.message), "retry");
        const choice = chunk.choices?.[0];
        end = choice?.finish_reason ?? end;
        if (choice?.delta?.content) yield { text: choice.delta.content, end: "" };
      }
      // Only [DONE] means that the answer is whole. A stream that just ends has been cut.
      if (done) throw new ApiError(BROKEN, "retry");
    }
  } finally {
    // Also when the person stops: this closes the connection, and with it the model's work.
    reader.cancel().catch(() => {});
  }
}

/**
 * @param {ReadableStreamDefaultReader<string>} reader
 * @param {AbortSignal} signal
 */
async function read(reader, signal) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  /** @type {Promise<never>} */
  const silence = new Promise((_, fail) => {
    timer = setTimeout(fail, SILENCE_MS);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError(BROKEN, "retry");
  } finally {
    clearTimeout(timer);
  }
}

/**
 * @param {string} address
 * @param {string} token
 * @param {RequestInit} options
 */
async function request(address, token, options) {
  /** @type {Record<string, string>} */
  // Without JSON in it, the sign-in proxy would answer with a redirect to another site.
  const headers = { Accept: "application/json, text/event-stream", ...(/** @type {any} */ (options.headers)) };
  if (token) headers["Authorization"] = `Bearer ${token}`;
  let response;
  try {
    // Followed, a redirect to the provider would end as "cannot be reached": another site's page is not ours to read.
    response = await fetch(address, { ...options, headers, cache: "no-store", credentials: "same-origin", redirect: "manual" });
  } catch (error) {
    if (options.signal?.reason?.name === "TimeoutError") throw new ApiError(SILENT, "retry");
    if (options.signal?.aborted) throw error;
    throw new ApiError(UNREACHABLE, "retry");
  }
  if (!response.ok) throw await problem(response);
  return response;
}

/** @param {Response} response */
async function problem(response) {
  let message = "";
  try {
    message = String((await response.json()).error.message);
  } catch {
    // Not our JSON: the answer of a proxy on the way.
    const signIn = response.type === "opaqueredirect" || response.status === 401 || response.status === 403;
    if (signIn) return new ApiError("Your sign-in has ended.", "sign-in");
    message = `The server answered with an error (${response.status}).`;
  }
  if (response.status === 401) return new ApiError("This access token is not valid here.", "token");
  const seconds = Number(response.headers.get("Retry-After"));
  // What starts again tomorrow or next month says so itself; a number of seconds would say nothing.
  if (seconds > 0 && seconds <= LONGEST_WAIT_S && !message.includes(`${seconds} s`)) message += ` (It suggests to wait ${seconds} s.)`;
  const retry = response.status === 408 || response.status === 429 || response.status >= 500;
  return new ApiError(message, retry ? "retry" : "request");
}
