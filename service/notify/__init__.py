"""Telling others that an experiment has ended, has failed, or waits.

What happens -> a row of `deliveries`, in the transaction that makes it happen -> a POST, until the receiver takes it.

* repository: who is told of what, once: a unique key of webhook, experiment, event and occurrence.
  ended, failed    occurrence = how often the experiment was opened anew (`Experiment.opened`)
  waiting          occurrence = since when runs of it wait (`Experiment.waits_since`), noted by waits
* messages: the body, made when it is first sent, and kept: who gets it twice gets the same bytes.
* posting: one POST, signed, that ends in time, follows no redirect and reads little of the answer.
* notifier: threads of its own; leases what is due, at most one at a time of each webhook, and writes what came of it.
* service: making webhooks, deleting and testing them.
"""
