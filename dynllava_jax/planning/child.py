"""Plans in a process of their own: the compilers for TPU and GPU stay out of every other command.

The parent writes a request to the child's standard input, a JSON object; the child answers a line of JSON each:
{"progress": …}, {"report": …}, or {"error": …}, after which it ends.
"""

import base64
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from dynllava_jax.errors import InputError
from dynllava_jax.planning.request import Request, answer

_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


def ask(request: Request, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Runs a request in a child process and gives its reports as they come.

    Raises:
        InputError: what the child refuses; or it died, with its last words.
    """
    payload = base64.b64encode(pickle.dumps(request))
    command = [sys.executable, "-m", "dynllava_jax.planning.child"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=words, env=os.environ | _ENVIRONMENT) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as question:
                question.write(payload)
            for line in process.stdout:
                said = json.loads(line)
                if "error" in said:
                    raise InputError(said["error"])
                if "progress" in said:
                    tell(said["progress"])
                else:
                    yield said["report"]
        except BaseException:
            process.kill()
            raise
        if process.wait():
            words.seek(0)
            last = words.read().decode(errors="replace").strip().splitlines()[-1:] or ["without a word"]
            raise InputError(f"The compiler's process ended with status {process.returncode}: {last[0][:300]}")


def main() -> None:
    """The child's side."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print must not come between

    def say(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=out, flush=True)

    request = pickle.loads(base64.b64decode(sys.stdin.buffer.read()))  # of our own parent
    try:
        for report in answer(request, lambda line: say("progress", line)):
            say("report", report)
    except InputError as error:
        say("error", str(error))


if __name__ == "__main__":
    main()
