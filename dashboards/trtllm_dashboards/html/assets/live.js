"use strict";
// A running sweep: how far it is, what it measures now, how long it will take; told again when it ends.

function runningNow() { return (state.data.progress ?? []).some((p) => p.state === "running"); }

function lasting(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 60 ? `${whole} s` : whole < 3600 ? `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s` : `${Math.floor(whole / 3600)} h ${String(Math.floor(whole % 3600 / 60)).padStart(2, "0")} min`;
}

function drawProgress() {
  const box = document.getElementById("progress"), told = state.data.progress ?? [];
  box.hidden = !told.length && !window.LIVE;
  const lines = told.map((p) => {
    if (p.state === "ended") return `Sweep ended: ${p.done} of ${p.total} measurements done.`;
    if (p.state === "interrupted") return `Sweep stopped early: ${p.done} of ${p.total} measurements done; sweep --resume goes on.`;
    const left = p.left_s === null ? "time left not known yet" : `about ${lasting(p.left_s - (Date.now() / 1000 - p.at))} left`;
    return p.total ? `Sweep running: ${p.done} of ${p.total} measurements done, ${left}.${p.now ? ` Now: ${p.now}${p.requests ? `, ${p.requests} requests` : ""}.` : ""}` : "Sweep running; it has not said yet how much there is to do.";
  });
  if (!told.length && window.LIVE) lines.push("No sweep is running in these results; the page follows them.");
  const bars = told.filter((p) => p.total > 0).map((p) => el("progress", { max: p.total, value: p.done, "aria-label": `${p.done} of ${p.total} measurements` }));
  const text = box.querySelector("p");
  if (text.textContent !== lines.join(" ")) text.textContent = lines.join(" ");
  box.querySelector(".bars").replaceChildren(...bars);
  const spoken = told.map((p) => `Sweep ${p.state}, ${p.done} of ${p.total}`).join("; "), status = box.querySelector("[role=status]");
  if (status.textContent !== spoken) status.textContent = spoken; // without the seconds left, which would be read out every second
}

function follow() {
  const badge = document.getElementById("live");
  badge.hidden = false;
  const events = new EventSource("events");
  events.onmessage = async () => {
    const answer = await fetch("data");
    if (answer.ok) show(await answer.json());
  };
  events.onopen = () => { badge.textContent = "live"; badge.classList.remove("lost"); };
  events.onerror = () => { badge.textContent = "connection lost"; badge.classList.add("lost"); };
  setInterval(drawProgress, 1000);
}
