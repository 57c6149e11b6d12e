"use strict";
// What the parts of the page share: the data, elements, numbers, colours and the tip.

const data = JSON.parse(document.getElementById("data").textContent);
const windowUs = data.steps.reduce((sum, s) => sum + s.span_us, 0);
const darkQuery = matchMedia("(prefers-color-scheme: dark)");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function el(name, attributes = {}, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

function fixed(value, digits = 3) {
  if (value === null || value === undefined || !isFinite(value)) return "-";
  const places = value === 0 ? 0 : Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return value.toLocaleString("en", { minimumFractionDigits: Math.min(places, 6), maximumFractionDigits: Math.min(places, 6) });
}
const percent = (ratio) => (ratio === null || ratio === undefined ? "-" : `${(100 * ratio).toFixed(1)}%`);
const rate = (perSecond) => (perSecond >= 1e12 ? `${fixed(perSecond / 1e12)} T` : perSecond >= 1e9 ? `${fixed(perSecond / 1e9)} G` : `${fixed(perSecond / 1e6)} M`);

// Roles in order of their time: the largest eight get colours of their own, apart for colour-blind readers too; the rest are hatched.
const roles = Object.entries(data.roles).sort((a, b) => b[1] - a[1]);
const shortName = (role) => role.split(".").pop();
function colour(role) {
  const at = roles.findIndex(([name]) => name === role), palette = darkQuery.matches ? data.looks.dark : data.looks.light;
  return at >= 0 && at < palette.length ? palette[at] : null;
}

const tip = document.getElementById("tip");
function showTip(event, text) {
  const box = event.target.getBoundingClientRect(), x = event.clientX ?? box.right, y = event.clientY ?? box.bottom;
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - tip.offsetHeight - 8))}px`;
}
function hideTip() { tip.hidden = true; }
function tipped(text) { return { onmousemove: (event) => showTip(event, text), onmouseleave: hideTip, onfocus: (event) => showTip(event, text), onblur: hideTip }; }

// Draws now, and again when the width or the theme changes.
function drawn(target, draw) {
  let width = 0;
  const again = () => { width = target.clientWidth; target.replaceChildren(); draw(target, Math.max(width, 300)); };
  again();
  new ResizeObserver(() => { if (target.clientWidth !== width) again(); }).observe(target);
  darkQuery.addEventListener("change", again);
}
