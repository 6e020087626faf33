"""Would a run start here, and go on? What `maskloom doctor` finds out before GPUs are spent on it.

    asking    every host at once: over ssh as a run's ranks come there, or here as a process
    look      what a host finds out about itself, and what a rank there would see
    facts     what it is asked and tells: JSON
    network   a small job of the run's real ranks and backend: how fast they sum, and which host is slow
    checks    facts of all hosts -> findings: ok, warn or fail, each with hosts, value and remedy. Pure
    estimates what a run needs of memory and disk
    visit     all of it in its order

A finding fails where a run would end, or would not be the same run everywhere; it warns where a run goes on, but not as well
as it could.
"""
