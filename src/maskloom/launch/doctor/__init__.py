"""Would a run start here, and keep running? What `maskloom doctor` finds out before GPUs are spent on it.

    commands/doctor -> hosts -> on every host: look -> machine    what a host finds out about itself, and what a rank would meet
                    -> checks                                     what must be the same everywhere; hosts with the same finding
                    -> network, on every host                     the run's real ranks sum: how fast, and which host is slow

`hosts` starts a program on every host at once, over ssh as a run's ranks start, or here as a process. A new check of a host is
a function and a row of the table in `machine.look`; if its value must be the same everywhere, a row of `checks.SAME`. Both stand
in `checks.ORDER`.

A finding fails if a run would end, or would not be the same on every host. It warns if a run lives with it.
"""
