"""Learned quality: how likely each model's answer to a prompt is good enough, and how far that can be believed.

How a gateway uses it, once a request and only for names that ask for it:

1. `features.extract` on the text of the last user message (turns and tools beside it), before the first attempt; keep the `Features` with
   the request: feedback that comes later is learned from them, and `Features.pack` is what a log keeps, without text.
2. `Scorer.predict` for the models of the group. With a ``doubt`` the group's stated order decides and the doubt is the reason shown.
   Otherwise ``probabilities`` are worth seconds and money in a policy, or `targets.ShareThreshold.takes` (one a group and process, kept while the
   process lives) or `targets.cheapest_good` decides.
3. Judged answers are appended to a log and then given to `Scorer.update` (about 1 ms: beside the requests, not on their way) in the log's order
   in every process; the same log gives the same scorer. `Scorer.state` from time to time saves replaying all of it.
4. A new artifact is another `Scorer` beside the first: predict with both, decide with one, compare their errors on judged answers; to
   promote it is to swap the reference. What was learned on top of the old artifact stays with it (`Scorer.restore` refuses another's state).
"""
