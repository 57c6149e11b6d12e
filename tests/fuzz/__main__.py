"""python -m tests.fuzz --cases 10000 [--kind results.json] [--seed 0]: damaged files of every kind; exits 1 if any is not read or refused
as it should be, and keeps that file in ./fuzz-faults."""

from __future__ import annotations

import argparse
import collections
import re
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import try_case
from kinds import KINDS

SLOW = re.compile(r"hung|took [0-9.]+ s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="over all kinds")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kinds = given.kind or list(KINDS)
    faults: dict[str, int] = collections.Counter()
    for number, name in enumerate(kinds):
        began, count = time.monotonic(), given.cases // len(kinds) + (number < given.cases % len(kinds))
        for case in range(count):
            fault, content = try_case(name, Random(f"{given.seed} {name} {case}"))
            if SLOW.match(fault):  # on a machine with other work it may have been that work
                fault, content = try_case(name, Random(f"{given.seed} {name} {case}"))
            if fault:
                faults[name] += 1
                place = Path("fuzz-faults") / f"{name.replace(' ', '-')}-{given.seed}-{case}"
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(content)
                print(f"{name}, seed {given.seed}, case {case}: {fault}", flush=True)
        print(f"{name}: {count} cases, {faults[name]} faults, {time.monotonic() - began:.1f} s", flush=True)
    return 1 if sum(faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
