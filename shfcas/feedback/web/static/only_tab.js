// One tab at a time per annotator: two tabs would get the same comparison.

/** Calls `free` when this tab may work and `taken` when another tab does; a click on `takeOver` claims the work. */
export function onlyTab(owner, { free, taken, takeOver }) {
  const me = crypto.getRandomValues(new Uint32Array(2)).join("-");
  const channel = new BroadcastChannel(`shfcas/${owner}`);
  let working = false;
  let waiting = true;
  const send = (word) => channel.postMessage({ word, from: me });

  const start = () => {
    working = true;
    waiting = false;
    free();
  };
  channel.addEventListener("message", ({ data }) => {
    // Of two tabs that start at once, the one with the greater id gives way.
    if (data.word === "anyone?" && (working || (waiting && me < data.from))) send("here");
    else if (data.word === "here" && waiting) {
      clearTimeout(timer);
      waiting = false;
      taken();
    } else if (data.word === "mine now" && working) {
      working = false;
      taken();
    }
  });
  const timer = setTimeout(start, 100);
  send("anyone?");

  takeOver.addEventListener("click", () => {
    send("mine now");
    // Also resets a tab that has worked before.
    location.reload();
  });
  addEventListener("pagehide", () => (working = false));
  addEventListener("pageshow", (event) => event.persisted && location.reload());
}
