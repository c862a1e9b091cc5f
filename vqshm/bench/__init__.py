"""Bench: `vqshm bench`, which measures vqshm and, in the same minutes, what else moves messages in Python.

    peers/     one adapter for each way to move a message, ours among them
    roles      what a measuring process does: send, receive, answer, wait
    loops      the two loops that must be compiled: the core alone, and the cache-line probe
    harness    processes that are started for one sample and surely end
    measures   what is measured, and how one sample of it is taken
    rounds     interleaves the samples, then medians, and ratios within a round
    report     the tables and the JSON            plot   the picture, where matplotlib is installed

What keeps it honest: every process is fresh; all who are compared take turns within a round; every message is checked
against what was sent, and the totals, too; the cache-line probe is taken by the two measuring processes just before and
just after the sample; the share of the processors that went to strangers meanwhile is noted beside each figure.
"""
