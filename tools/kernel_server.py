"""Start kernels from a process that has imported what notebooks import.

Importing JAX, Flax, Matplotlib and pfcore takes more processor time than the rest of many
notebooks. A server imports them once and forks a kernel for each request, a line of JSON on its
standard input: `{"argv": [...], "cwd": "..."}`. It answers with the kernel's process number and,
when the kernel has ended, with its exit status. The imports start no backend of JAX, which a fork
would break.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

IMPORTS = (
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "matplotlib.pyplot",
    "flax.nnx",
    "optax",
    "pfcore.claims",
    "pfcore.experiments",
    "pfcore.figures",
    "pfcore.learning_rates",
    "pfcore.objectives",
)
POLL = 0.05  # seconds


class Forked:
    """A forked kernel, with the methods of `subprocess.Popen` that Jupyter uses."""

    def __init__(self, server: "subprocess.Popen[str]", argv: list[str], cwd: str | None) -> None:
        assert server.stdin is not None and server.stdout is not None
        self._answers = server.stdout
        server.stdin.write(json.dumps({"argv": argv, "cwd": cwd}) + "\n")
        server.stdin.flush()
        answer = self._answers.readline()
        if not answer:
            raise RuntimeError(f"the server of kernels ended with status {server.wait()}")
        self.pid = int(answer)
        self.returncode: int | None = None
        self.stdin = self.stdout = self.stderr = None

    def poll(self) -> int | None:
        """The exit status, or None while the kernel runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = int(self._answers.readline() or -signal.SIGKILL)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(POLL)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedKernel(LocalProvisioner):
    """Launches kernels by this process's server, which the first kernel starts."""

    server: "subprocess.Popen[str] | None" = None
    last: Forked | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        if ForkedKernel.server is None or ForkedKernel.server.poll() is not None:
            ForkedKernel.server = subprocess.Popen(
                [sys.executable, __file__],
                env=kwargs["env"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the process that asked
            )
        if ForkedKernel.last is not None:  # a server has one kernel at a time
            ForkedKernel.last.kill()
            ForkedKernel.last.wait()
        # What follows `python -m ipykernel_launcher`.
        argv = cmd[cmd.index("ipykernel_launcher") + 1 :]
        forked: Any = Forked(ForkedKernel.server, argv, kwargs.get("cwd"))
        ForkedKernel.last = self.process = forked
        self.pid, self.pgid = forked.pid, None
        return self.connection_info


def serve() -> None:
    """Fork a kernel for each request, one at a time, until the input is closed."""
    sys.path = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
    # Matplotlib reads it when it is imported; ipykernel sets it later.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in IMPORTS:
        with contextlib.suppress(Exception):  # a notebook that needs it shows the error
            importlib.import_module(name)
    from ipykernel.kernelapp import IPKernelApp

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)  # the answers' pipe is not for the kernel
            if request["cwd"]:
                os.chdir(request["cwd"])
            sys.path.insert(0, "")
            parent = f"--IPKernelApp.parent_handle={os.getppid()}"
            IPKernelApp.launch_instance(argv=[*request["argv"], parent])
            os._exit(0)
        print(pid, flush=True)
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if select.select([sys.stdin], [], [], POLL)[0]:  # closed: nobody is left to ask
                os.kill(pid, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(ended[1]), flush=True)


if __name__ == "__main__":
    serve()
