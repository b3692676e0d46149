// One tab at a time works for a person: two would be given the same comparison.

/** Calls `free` when this tab may work, `taken` when another one does; a click on `takeOver` makes it this one. */
export function onlyTab(owner, { free, taken, takeOver }) {
  const me = crypto.getRandomValues(new Uint32Array(2)).join("-");
  const channel = new BroadcastChannel(`shfcas/${owner}`);
  let working = false;
  let waiting = true;
  const say = (word) => channel.postMessage({ word, from: me });

  const start = () => {
    working = true;
    waiting = false;
    free();
  };
  channel.addEventListener("message", ({ data }) => {
    // Of two that begin at once, one gives way.
    if (data.word === "anyone?" && (working || (waiting && me < data.from))) say("here");
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
  say("anyone?");

  takeOver.addEventListener("click", () => {
    say("mine now");
    // A tab that has worked before begins afresh.
    location.reload();
  });
  addEventListener("pagehide", () => (working = false));
  addEventListener("pageshow", (event) => event.persisted && location.reload());
}
