import argparse
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

ARGUMENTS = sys.argv[1:]  # the host's own stand there from the next import on
sys.path.append(str(Path(__file__).resolve().parents[1]))

from in_process import GraphRunner  # noqa: E402

from fuzz.graphs import trials  # noqa: E402
from fuzz.sound import toy_values  # noqa: E402
from fuzz.verdicts import DEFECTS, TRACEBACK, try_graph  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser("python tests/host/fuzz", None, "Bad values at every input of every node.")
    parser.add_argument("--only", nargs="+", metavar="NODE", default=(), help="ids of nodes; all without it")
    parser.add_argument("--every", type=int, default=1, help="only every so many of the graphs")
    options = parser.parse_args(ARGUMENTS)

    sys.stdout.reconfigure(errors="backslashreplace")  # some of the texts are none
    runner = GraphRunner()
    values, found, defects, slowest = toy_values(runner), defaultdict(Counter), [], (0.0, None)
    began = time.process_time()
    for number, trial in enumerate(trials(values, options.only)):
        if number % options.every:
            continue
        start = time.process_time()
        verdict = try_graph(runner, trial.graph, trial.values)
        seconds = time.process_time() - start
        slowest = max(slowest, (seconds, str(trial)))
        found[trial.node][verdict.kind] += 1
        forged = " (forged)" if trial.forged else ""
        print(f"{verdict.kind:24} {seconds:5.1f} s  {trial}{forged}  {verdict.text}", flush=True)
        if verdict.kind in DEFECTS:
            defects.append((trial, verdict))
    total = sum(sum(counts.values()) for counts in found.values())
    print(f"\n{total} graphs in {time.process_time() - began:.0f} s of computing, slowest {slowest[0]:.1f} s: {slowest[1]}")
    for kind, count in sum(found.values(), Counter()).most_common():
        print(f"{kind:24} {count:5} {count / total:7.2%}")
    tracebacks = sum(verdict.kind == TRACEBACK for _, verdict in defects)
    sendable = [trial for trial, _ in defects if not trial.forged]
    return int(tracebacks > 0.03 * total or bool(sendable))


if __name__ == "__main__":
    sys.exit(main())
