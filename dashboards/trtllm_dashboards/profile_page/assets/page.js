"use strict";
// What the parts of the page share: the data, elements, numbers, colours and the tip.

const data = JSON.parse(document.getElementById("data").textContent);
const windowUs = data.steps.reduce((sum, s) => sum + s.span_us, 0);
const GAP = "#b9b9b4";
const PALETTE = ["#2f6fb7", "#e0842d", "#3f9a5f", "#b94a62", "#7b5fb0", "#2a9d9a", "#c2a020", "#8a5a44", "#d46a9f", "#5c7fa3", "#7fa650", "#a0522d"];

function el(name, attributes = {}, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
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

// Roles in order of their time: the largest get colours of their own.
const roles = Object.entries(data.roles).sort((a, b) => b[1] - a[1]);
const colours = Object.fromEntries(roles.map(([role], i) => [role, PALETTE[i % PALETTE.length]]));
const shortName = (role) => role.split(".").pop();

const tip = document.getElementById("tip");
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}
function hideTip() { tip.hidden = true; }
function tipped(text) { return { onmousemove: (event) => showTip(event, text), onmouseleave: hideTip }; }
