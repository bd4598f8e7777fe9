// Whom a comment called, and when it is heard. cli/words.py says the same.

const WORDS = {
  enqueued: (agent) => `${agent} is called; a run is queued.`,
  joined: (agent) => `${agent} hears of it in the run that waits already.`,
  waiting: (agent) => `${agent} is at work here, and hears of it when that run ends.`,
  too_many_hops: (agent) => `${agent} is not called: agents have called one another too often.`,
};

export const called = (answer) => answer.called.map((each) => WORDS[each.outcome](each.agent)).join(" ");
