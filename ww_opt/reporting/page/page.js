"use strict";
(() => {
  const { columns, pair, pick } = JSON.parse(document.getElementById("data").textContent);
  const numbers = columns.trial;
  const byId = (id) => document.getElementById(id);
  for (const own of document.querySelectorAll(".script")) own.hidden = false;

  // the table of trials: sorts by a click on a head, filters by words and outcome
  const table = document.querySelector("#trials table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const place = Object.fromEntries(heads.map((head, at) => [head.textContent, at]));
  const value = (row, at) => {
    const text = row.cells[at].textContent;
    return text === "-" ? null : text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compared = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
  const sort = (at) => {
    const falls = heads[at].getAttribute("aria-sort") === "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[at].setAttribute("aria-sort", falls ? "descending" : "ascending");
    const keyed = rows.map((row) => [value(row, at), row]);
    keyed.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null); // what is missing comes last
      return falls ? compared(other, one) : compared(one, other);
    });
    body.append(...keyed.map(([, row]) => row));
  };
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(at));
    head.replaceChildren(button);
  });
  const words = byId("words");
  const outcome = byId("outcome");
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const own = row.cells[place.outcome].textContent;
      row.hidden = !(wanted.every((word) => text.includes(word)) && (!outcome.value || own === outcome.value));
      shown += !row.hidden;
    }
    byId("count").textContent = `${shown} of ${rows.length} trials`;
  };
  words.addEventListener("input", filter);
  outcome.addEventListener("change", filter);
  filter();

  // two trials side by side
  if (pair.length < 2) return;
  const first = byId("first");
  const second = byId("second");
  const differ = byId("differ");
  const other = document.querySelector("#compare table");
  const told = (own) => (own === null || own === undefined ? "-" : String(own));
  const cell = (text, isNumber) => {
    const made = document.createElement("td");
    made.textContent = text;
    if (isNumber) made.className = "n";
    return made;
  };
  const change = (name, one, two) => {
    if (typeof one !== "number" || typeof two !== "number" || one === two) return "";
    if (name.includes("/") && one > 0 && two > 0) return `× ${Number((two / one).toPrecision(3))}`;
    return `${two > one ? "+" : "-"}${Number(Math.abs(two - one).toPrecision(3))}`;
  };
  const show = () => {
    const at = [first, second].map((own) => numbers.indexOf(Number(own.value)));
    const made = [];
    for (const [name, own] of Object.entries(columns)) {
      if (name === "trial") continue;
      const [one, two] = at.map((place) => own[place] ?? null);
      if ((one === null && two === null) || (differ.checked && one === two)) continue;
      const row = document.createElement("tr");
      if (one !== two) row.className = "differs";
      row.append(cell(/\/| of /.test(name) ? name : name.replaceAll("_", " "), false), cell(told(one), true), cell(told(two), true), cell(change(name, one, two), true));
      made.push(row);
    }
    const head = other.tHead.rows[0];
    const names = ["what", `trial ${first.value}`, `trial ${second.value}`, "change"];
    head.replaceChildren(...names.map((name, at) => {
      const th = document.createElement("th");
      th.scope = "col";
      th.textContent = name;
      if (at) th.className = "n";
      return th;
    }));
    other.tBodies[0].replaceChildren(...made);
  };
  for (const [select, chosen] of [[first, pair[0]], [second, pair[1]]]) {
    select.append(...numbers.map((number, at) => {
      const score = columns.score[at];
      return new Option(`${number}${score === null ? "" : `: ${score}`} (${columns.outcome[at]})`, number, false, number === chosen);
    }));
    select.addEventListener("change", show);
  }
  differ.addEventListener("change", show);
  show();
  for (const row of rows) {
    const button = document.createElement("button");
    const number = row.cells[place.trial].textContent;
    button.type = "button";
    button.textContent = number;
    button.setAttribute("aria-label", `Compare trial ${number}`);
    button.addEventListener("click", () => {
      first.value = number;
      show();
      byId("compare").scrollIntoView();
      first.focus({ preventScroll: true });
    });
    row.cells[place.trial].replaceChildren(button);
    if (Number(number) === pick) row.classList.add("pick");
  }
})();
