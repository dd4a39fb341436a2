"""Peak memory of a fit, in a process of its own: names of cases in, bytes out."""

import json
import sys

from tesseral.bench.regress.run import brain_memory


def main() -> None:
    """Read a list of names from stdin and write as many numbers of bytes to stdout."""
    names = json.load(sys.stdin)
    sys.stdout.write(json.dumps([brain_memory() for _ in names]))


if __name__ == "__main__":
    main()
