"""Would a run start here, and go on? What `maskloom doctor` finds out before GPUs are spent on it.

    commands/doctor   request -> hosts -> look, on every host -> facts -> checks -> findings, and then the network's

    hosts       starts a program on every host at once, over ssh as a run's ranks start, or here as a process
    look        that program: what a host finds out about itself, and what a rank there would meet
    checks      facts of all hosts -> findings: ok, warn or fail, each with hosts, value and remedy. Nothing is asked or read here
    estimates   what a run needs of memory and disk
    network     another program: the run's real ranks and backend sum numbers; how fast, and which host is slow

A finding fails if a run would end, or would not be the same on every host. It warns if a run lives with it.
"""
