"""Facts of all hosts -> findings. Pure: nothing is asked, read or measured here.

`fail` is what would end a run or make it another one on one host than on the next; `warn` is what a run lives with.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskloom.launch.doctor.asking import Answer
from maskloom.launch.doctor.checks.machines import clocks, cores, devices, gpu_health, memory
from maskloom.launch.doctor.checks.network import hosts_answer, port
from maskloom.launch.doctor.checks.software import configuration, files, operators, versions
from maskloom.launch.doctor.checks.storage import corpora, disk, folder, lock
from maskloom.launch.doctor.findings import Finding, Wanted


def check(wanted: Wanted, answers: Sequence[Answer]) -> list[Finding]:
    """All findings but the network's, in the order of the table."""
    facts = {answer.host: answer.facts for answer in answers if answer.facts}
    found = [*hosts_answer(answers), *configuration(wanted, facts)]
    if not facts:
        return found
    for part in (versions, devices, gpu_health):
        found += part(wanted, facts)
    found += clocks(answers)
    for part in (cores, memory, files, folder, disk, corpora, port, lock, operators):
        found += part(wanted, facts)
    return found
