"""Start a server in a child process and wait until it is ready."""

from __future__ import annotations

import atexit
import collections
import dataclasses
import subprocess
import sys
import threading
from typing import Any

from runtime.config import EngineConfig, ServerConfig
from runtime.errors import InvalidRequest
from runtime.foreign_flags import own_options

_READY = "The server is ready at "


class ServerProcess:
    """`runtime serve` as a child. Options are fields of EngineConfig and ServerConfig; the port is a free one unless given.

    Raises RuntimeError("Initialization failed ...") with the child's last lines if it does not come up.
    """

    def __init__(self, **options: Any) -> None:
        options = own_options(options, EngineConfig, ServerConfig)
        known = {f.name for c in (EngineConfig, ServerConfig) for f in dataclasses.fields(c)}
        for name in options:
            if name not in known:
                raise InvalidRequest(
                    f"server option {name!r} is not known; known: {', '.join(sorted(known))}", param=name
                )
        options = {"port": 0, "log_level": "error", **options}
        command = [sys.executable, "-m", "runtime.cli", "serve"]
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                command.append(flag)
            elif value is not None and value is not False:
                for one in value if isinstance(value, (list, tuple)) else (value,):
                    command += [flag, str(one)]
        self._tail: collections.deque[str] = collections.deque(maxlen=20)
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._drain, daemon=True).start()
        atexit.register(self.shutdown)
        self.url = self._wait()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def last_lines(self) -> list[str]:
        """The last of what the server wrote to its standard error."""
        return list(self._tail)

    def wait(self, seconds: float) -> int:
        """The exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        return self._child.wait(seconds)

    def _drain(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            self._tail.append(line.rstrip())

    def _wait(self) -> str:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith(_READY):
                threading.Thread(target=self._child.stdout.read, daemon=True).start()
                return line.removeprefix(_READY).strip()
        self._child.wait()
        raise RuntimeError(
            "Initialization failed: " + (" | ".join(self._tail) or f"exit code {self._child.returncode}")
        )

    def shutdown(self) -> None:
        """Stop the server and wait for it."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        atexit.unregister(self.shutdown)
