import sys
from collections import Counter
from pathlib import Path

ARGUMENTS = sys.argv[1:]  # the host's own stand there from the next import on
sys.path.append(str(Path(__file__).resolve().parents[1]))

import in_process as in_process  # noqa: E402  first of all: it makes `comfy` importable
import torch  # noqa: E402

from faults.bench import Bench  # noqa: E402


def main() -> int:
    count = int(ARGUMENTS[0]) if ARGUMENTS else 300
    bench, kinds, failed = Bench(), Counter(), 0
    for fault in bench.draw(count):
        wrong = bench.inject(fault)
        kinds[f"{fault.kind} at {fault.place}"] += 1
        failed += bool(wrong)
        if wrong:
            print(f"{fault}: {', '.join(wrong)}", flush=True)
    same = all(torch.equal(tensor, bench.expected[loop]) for loop, tensor in bench.results().items())
    print(f"{count} faults ({dict(kinds)}): {failed} left something behind; the same bits afterwards: {same}")
    return int(failed > 0 or not same)


if __name__ == "__main__":
    sys.exit(main())
