"""`python -m jaxpurify` is the `jaxpurify` command."""

from jaxpurify.cli.main import run

if __name__ == "__main__":
    run()
