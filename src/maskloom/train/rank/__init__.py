"""What keeps a rank honest: it stops when asked, shows that it lives, and ends when it hangs.

stopping     the whole way of SIGTERM, in one picture; `Requests`: signals, RUN/stop and a lost launcher, as one reason to stop
watch        `Watch`: the thread that never waits; it hears requests, beats, and ends a rank whose main thread hangs
notices      `Notices`: what ranks tell each other with every step, so that all of them stop after the same one
heartbeats   signs of life in the ranks' store, and which rank is to blame when the others wait
log          RUN/logs/rank-N.log: what a rank said, and the stacks of its threads
"""
