"use strict";
// Model text only ever enters the page as text nodes, and what could act on the text around it, or
// not be seen, is spelled out.

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// Controls (but tab and line feed), separators, directions and other formats, private use, tags, and
// surrogates without their other half.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\u2028\u2029\u115f\u1160\u3164\uffa0]/u;
// A stack of marks that would cover the lines around it.
const STACK = /\p{M}{9,}/u;
const PARTS = new RegExp(`\n|(?![\t])${UNSEEN.source}|${STACK.source}`, "gu");

function spelt(part) {
  const characters = [...part];
  if (characters.length > 1) return `${characters.length} marks`;
  return `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// The nodes of a text; on one line, a line feed is a sign.
function visible(text, oneLine = false) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(PARTS)) {
    if (match.index > from) nodes.push(text.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[0] !== "\n") nodes.push(element("span", "unseen", spelt(match[0])));
    else if (oneLine) nodes.push(element("span", "newline"), " ");
    else nodes.push(element("span", "newline"), "\n");
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

function format(value) {
  if (typeof value !== "number") return String(value ?? "\u2013");
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(2) : value.toFixed(3);
}

function signed(value) {
  return typeof value === "number" && value > 0 ? `+${format(value)}` : format(value);
}
