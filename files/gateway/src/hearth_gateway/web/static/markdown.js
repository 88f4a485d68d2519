// @ts-check
// A small, safe part of Markdown. Text becomes DOM nodes through textContent only: whatever a model
// writes, it cannot become markup. No images: their addresses could carry words to another host.

/**
 * Shows a text that grows. Finished blocks stay as they are; only what changed is built again, so a
 * long answer costs no more per word than a short one.
 */
export class GrowingText {
  /** @type {string[]} */
  #blocks = [];

  /** @param {HTMLElement} home */
  constructor(home) {
    this.home = home;
  }

  /** @param {string} text the whole text so far */
  show(text) {
    const blocks = splitBlocks(text);
    let same = 0;
    while (same < blocks.length && blocks[same] === this.#blocks[same]) same++;
    while (this.home.childNodes.length > same) this.home.lastChild?.remove();
    for (const block of blocks.slice(same)) {
      const shown = renderBlock(block);
      if (!shown.matches(".code")) shown.dir = "auto"; // Arabic and Hebrew begin at the right
      this.home.append(shown);
    }
    this.#blocks = blocks;
  }
}

// Its space in front is left out of the code; of what follows only the first word, the language, is for us (```js title="x").
const FENCE = /^(\s*)(```+|~~~+)\s*([^\s`]*)(?:\s[^`]*)?$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const ROW = /^\s*\|/;
const BELOW_HEAD = /^[\s|:]*-[\s|:-]*$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;

/**
 * Cut at blank lines, but not inside a fenced block of code; headings and fences stand alone.
 *
 * @param {string} text
 * @returns {string[]}
 */
export function splitBlocks(text) {
  /** @type {string[]} */
  const blocks = [];
  /** @type {string[]} */
  let current = [];
  let fence = "";
  const close = () => {
    if (current.length) blocks.push(current.join("\n"));
    current = [];
  };
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line);
    if (fence) {
      current.push(line);
      if (mark && !mark[3] && mark[2]?.startsWith(fence)) {
        fence = "";
        close();
      }
    } else if (mark) {
      close();
      fence = mark[2] ?? "";
      current.push(line);
    } else if (!line.trim()) {
      close();
    } else if (HEADING.test(line) || RULE.test(line)) {
      close();
      blocks.push(line);
    } else {
      // A list or a table right below its introduction, and what follows a table.
      const [first] = current;
      if (first !== undefined && ((ITEM.test(line) && !ITEM.test(first)) || ROW.test(line) !== ROW.test(first))) close();
      current.push(line);
    }
  }
  close();
  return blocks;
}

/**
 * @param {string} block
 * @returns {HTMLElement}
 */
export function renderBlock(block) {
  const lines = block.split("\n");
  const first = lines[0] ?? "";
  const fence = FENCE.exec(first);
  if (fence) return renderCode(lines, fence);
  const heading = HEADING.exec(first);
  if (heading) return fill(make(`h${Math.min(5, (heading[1] ?? "").length + 2)}`), heading[2] ?? "");
  if (RULE.test(first)) return make("hr");
  if (ITEM.test(first)) return renderList(lines);
  if (ROW.test(first) && BELOW_HEAD.test(lines[1] ?? "")) return renderTable(lines);
  if (lines.every((line) => line.startsWith(">"))) {
    return fill(make("blockquote"), lines.map((line) => line.replace(/^>\s?/, "")).join("\n"));
  }
  return fill(make("p"), block);
}

/**
 * @param {string[]} lines
 * @param {RegExpExecArray} start what `FENCE` found in the first
 */
function renderCode(lines, [, space = "", fence = "", language]) {
  const last = FENCE.exec(lines[lines.length - 1] ?? "");
  const closed = lines.length > 1 && last !== null && !last[3] && (last[2] ?? "").startsWith(fence);
  const inside = lines.slice(1, closed ? -1 : undefined);
  const source = inside.map((line) => (line.startsWith(space) ? line.slice(space.length) : line)).join("\n");
  const box = make("div", "code");
  const head = make("div", "code-head");
  const label = make("span");
  label.textContent = language || "code";
  head.append(label, copyButton(() => source));
  const pre = make("pre");
  pre.tabIndex = 0; // a long line must be scrollable with the keyboard
  const code = make("code");
  code.textContent = source;
  pre.append(code);
  box.append(head, pre);
  return box;
}

/**
 * Lists inside lists by how far in an item stands. One of the other kind belongs into the item above also where it stands no
 * further in: models write both, and the numbers must go on.
 *
 * @param {string[]} lines
 */
function renderList(lines) {
  /** @type {{indent: number, number: string | undefined, text: string}[]} */
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    const above = items[items.length - 1];
    if (item) items.push({ indent: (item[1] ?? "").replace(/\t/g, "    ").length, number: item[2], text: item[3] ?? "" });
    else if (above) above.text += `\n${line.trim()}`;
  }
  const home = make("div");
  /** The open lists, the innermost last. @type {{indent: number, list: HTMLElement}[]} */
  let open = [];
  for (const { indent, number, text } of items) {
    const tag = number ? "OL" : "UL";
    let level = open.length;
    while (level > 0) {
      const { indent: at, list } = open[level - 1] ?? { indent, list: home };
      if (list.tagName === tag && indent < at + 2 && (indent > at - 2 || level === 1)) break;
      level--;
    }
    if (level > 0) {
      open = open.slice(0, level);
    } else {
      open = open.filter(({ indent: at }, depth) => depth === 0 || at <= indent);
      const list = make(tag);
      if (list instanceof HTMLOListElement) list.start = Number(number);
      (open[open.length - 1]?.list.lastElementChild ?? home).append(list);
      open.push({ indent, list });
    }
    open[open.length - 1]?.list.append(fill(make("li"), text));
  }
  return open[0]?.list ?? home;
}

/** @param {string[]} lines the head, the line below it, and the rows */
function renderTable([head = "", , ...rows]) {
  const box = make("div", "table");
  box.tabIndex = 0; // a wide table must be scrollable with the keyboard
  const table = make("table");
  [head, ...rows].forEach((row, at) => {
    const line = make("tr");
    // `\|` is a stroke inside a cell; no text has the sign that stands for it meanwhile.
    for (const cell of row.trim().replaceAll("\\|", "\u0001").replace(/^\||\|$/g, "").split("|")) {
      line.append(fill(make(at ? "td" : "th"), cell.replaceAll("\u0001", "|").replace(/<br *\/?>/g, "\n").trim()));
    }
    table.append(line);
  });
  box.append(table);
  return box;
}

// Without lookbehind: in Safari before 16.4 it is an error of syntax, and the whole page would not start.
const INLINE =
  /`([^`]+)`|\*\*(?=\S)(.*?\S)\*\*|\[([^\]]+)\]\((https?:\/\/(?:[^\s()]|\([^\s()]*\))+)\)|<(https?:\/\/[^\s<>]+)>|(https?:\/\/(?=[\w\u0080-\uffff])(?:[^\s()<>[\]*"`]|\([^\s()<>*"`]*\))+)|(^|[^\w*])\*(?=[^\s*])(.*?[^\s*])\*(?![\w*])/s;
// What ends a sentence, not the address in it.
const BEHIND = ".,;:!?'_~\u2026\u201d\u2019\u00bb\u3002\uff0c";

/**
 * Append `text` with code, bold, italics and links to `element`.
 *
 * @template {HTMLElement} T
 * @param {T} element
 * @param {string} text
 * @returns {T}
 */
function fill(element, text) {
  let rest = text;
  for (let match = INLINE.exec(rest); match; match = INLINE.exec(rest)) {
    appendLines(element, rest.slice(0, match.index));
    const [, code, bold, label, address, enclosed, bare, before, italic] = match;
    let [whole] = match;
    if (code !== undefined) {
      const node = make("code");
      node.textContent = code;
      element.append(node);
    } else if (bold !== undefined) {
      element.append(fill(make("strong"), bold));
    } else if (italic !== undefined) {
      appendLines(element, before ?? "");
      element.append(fill(make("em"), italic));
    } else if (label !== undefined && address !== undefined) {
      element.append(makeLink(label, address));
    } else if (enclosed !== undefined) {
      element.append(makeLink(enclosed, enclosed));
    } else if (bare !== undefined) {
      let end = bare.length;
      while (BEHIND.includes(bare.charAt(end - 1))) end--;
      whole = bare.slice(0, end);
      element.append(makeLink(whole, whole));
    }
    rest = rest.slice(match.index + whole.length);
  }
  appendLines(element, rest);
  return element;
}

/**
 * @param {string} label
 * @param {string} address
 */
function makeLink(label, address) {
  const link = document.createElement("a");
  link.textContent = label;
  link.href = address;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return link;
}

/**
 * @param {HTMLElement} element
 * @param {string} text
 */
function appendLines(element, text) {
  text.split("\n").forEach((line, index) => {
    if (index) element.append(document.createElement("br"));
    if (line) element.append(line);
  });
}

/**
 * @param {string} tag
 * @param {string} [className]
 * @returns {HTMLElement}
 */
export function make(tag, className) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}

/**
 * @param {() => string} text
 * @returns {HTMLButtonElement}
 */
export function copyButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "action";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Could not copy"; // no permission, or not a secure origin
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}
