"""pgbench at work on a source."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fix_servers import INSTALLED, Pair


class Pgbench:
    """pgbench's standard transactions on the source, in a schema of their own."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._program = str(INSTALLED[pair.source_server.major].program("pgbench"))
        pair.on_source().execute("CREATE SCHEMA bench")
        self._run("-i", "-q", "-s", "2", "--foreign-keys")

    @contextmanager
    def queue(self, rate: int = 1000) -> Iterator[None]:
        """A job queue: so many jobs come and go a second, each in a transaction of its own, until the block ends."""
        scripts = {
            "put": "INSERT INTO public.job (v) VALUES ('job')",
            "take": (
                "DELETE FROM public.job WHERE id = "
                "(SELECT id FROM public.job ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)"
            ),
        }
        with tempfile.TemporaryDirectory() as directory:
            files = []
            for name, text in scripts.items():
                path = Path(directory, name)
                path.write_text(text)
                files += ["-f", str(path)]
            with self.running(2 * rate, *files):
                yield

    def _run(self, *arguments: str) -> None:
        subprocess.run(
            [self._program, *arguments, self._pair.source],
            env=self._environment(),
            check=True,
            capture_output=True,
            timeout=120,
        )

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PGOPTIONS": "-c search_path=bench"}

    @contextmanager
    def running(self, rate: int | None = 300, *more: str) -> Iterator[None]:
        """Four clients until the block ends, so many transactions a second, or as many as they can; fails if one did."""
        pace = [] if rate is None else ["-R", str(rate)]
        arguments = ["-n", "-c", "4", *pace, "-T", "3000", *more, self._pair.source]
        with subprocess.Popen(
            [self._program, *arguments],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield
                assert process.poll() is None, process.stdout.read() if process.stdout else ""
            finally:
                process.kill()
