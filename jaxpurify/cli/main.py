"""The `jaxpurify` command: finds the command's file, runs it, and turns bad input into one line and exit 2."""

import importlib
import os
from pathlib import Path
import sys

from jaxpurify.cli.memory import keep_memory, restart_with_large_heaps

COMMANDS = {
    "demo": "the main job on scanned digits: poison, purify, train, report",
    "purify": "clean a data set with a purifier",
    "generate": "train an energy or a diffusion model to purify with",
    "craft": "make a poison",
    "train": "train a classifier",
    "evaluate": "attack × defence × victim, as rows and a table",
    "report": "tables and pages from results",
    "list": "everything that has a name: attacks, purifiers, networks, presets, weights",
}

# These keep what is finished; others start anew.
RESUMED = ("demo", "purify", "generate", "evaluate")

# A command's file is named after it, where that does not hide a builtin.
FILES = {"list": "list_names"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status (0, or 2 for bad input, or 130 when interrupted).

    Args:
      arguments: the words after `jaxpurify`; None: those that the process was started with.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"jaxpurify: unknown command {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    keep_memory(_prepare_jax())
    try:
        # Imported only now: most commands need JAX, whose import takes seconds.
        command = importlib.import_module(f"jaxpurify.cli.{FILES.get(name, name)}")
        return command.main(rest) or 0
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"jaxpurify {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "run the same command again" + (" to continue" if name in RESUMED else "")
        print(f"jaxpurify {name}: interrupted; {again}", file=sys.stderr)
        return 130
    except SystemExit as exit:  # --help, or options that the parser refused and has already explained
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)


def run() -> None:
    """The console command. An interrupt leaves at once: threads of XLA that still compile must not meet an exit."""
    restart_with_large_heaps()
    status = main()
    if status == 130:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _prepare_jax() -> int:
    """Sets what JAX reads from the environment when it is imported, where the user has not; returns its CPU devices.

    Compiled programs are kept between runs. On CPU there is one JAX device a core: a batch split over them keeps
    every core busy in operations that XLA runs on one thread (Langevin steps: 1.4 times as fast on two cores).
    """
    if "jax" in sys.modules:
        return max(1, sys.modules["jax"].config.jax_num_cpu_devices)  # -1 stands for JAX's own choice, which is one
    devices = os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxpurify" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    return int(devices) if devices.isdecimal() else 1  # what is no number, JAX refuses in its own words


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxpurify COMMAND [options]",
            "",
            *lines,
            "",
            "jaxpurify COMMAND --help shows the options of a command.",
        ]
    )
