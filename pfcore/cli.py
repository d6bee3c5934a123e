"""The command line: list experiments, run or resume one, redraw a figure."""

import dataclasses
import signal
import textwrap
from pathlib import Path
from typing import Annotated, Any

import pfcore
from pfcore._extras import optional

with optional():
    import typer

    from pfcore import experiments

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Experiments of the book on gradient descent in continuous time.",
)
STOPPED = 130  # the exit status that shells report after Ctrl-C
WIDTH = 72  # columns of the listing, which the book shows without scrolling


def _show_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"pfcore {pfcore.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    del version  # shown by its callback


@app.command("list")
def list_experiments() -> None:
    """List experiments, settings and problems."""
    width = max(map(len, experiments.EXPERIMENTS))
    for name in experiments.EXPERIMENTS:
        typer.echo(f"{name:{width}}  {experiments.summary(name)}")
    typer.echo("\nSettings (--set KEY=VALUE), as the quick profile has them:")
    for name in experiments.EXPERIMENTS:
        config = experiments.configure(name, profile="quick")
        fields = [f for f in dataclasses.fields(config) if f.name != "problem"]
        shown = ", ".join(f"{f.name}={_as_text(getattr(config, f.name))}" for f in fields)
        typer.echo(f"\n{name}")
        typer.echo(_wrapped("  " + shown))
    typer.echo(f"\nProfiles: {', '.join(experiments.PROBLEMS)}")
    problems = f"Problems (--set problem=NAME): {', '.join(experiments.PROBLEMS['quick'])}"
    typer.echo(_wrapped(problems))


def _as_text(value: Any) -> str:
    """A setting in the syntax of `--set`."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_as_text, value)) + ")"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Experiment, as `pfcore list` shows it.")],
    profile: Annotated[
        str,
        typer.Option(help="quick (a laptop) or full (a GPU).", envvar=experiments.PROFILE_VARIABLE),
    ] = "quick",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for checkpoints and the record.", show_default="runs/NAME-PROFILE"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
) -> None:
    """Run an experiment and store its record.

    The arrays and their provenance are written to a folder.
    """
    out = Path("runs") / f"{name}-{profile}" if out is None else out
    # Schedulers stop a job with SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = experiments.configure(name, *(settings or ()), profile=profile)
        if config.problem.dtype == "float64":
            import jax  # only here: `pfcore list` needs none of it

            jax.config.update("jax_enable_x64", True)
        record = experiments.run(name, config, out=out, resume=resume, progress=True)
    except KeyboardInterrupt as stopped:
        # Before its first checkpoint and after its last a run has no message of its own.
        typer.echo(
            f"\n{str(stopped) or 'stopped'}; add --resume to the same command to continue", err=True
        )
        raise typer.Exit(STOPPED) from None
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    info = record.info
    if info["diverged"]:
        typer.echo(f"diverged at step {info['diverged_at_step']}")
    typer.echo(f"{out}: {len(record.arrays)} arrays, {info['wall_time_s']:.1f} s, {info['device']}")


@app.command()
def redraw(
    source: Annotated[Path, typer.Argument(help="A figure's CSV, or a PNG that carries it.")],
    target: Annotated[Path, typer.Argument(help="Output file: .svg, .pdf or .png.")],
    theme: Annotated[str, typer.Option(help="light, or dark for a dark page.")] = "light",
) -> None:
    """Redraw a figure from its data alone."""
    from pfcore import figures  # needs Matplotlib, which the other commands do not

    try:
        csv = figures.contents(source).csv if source.suffix.lower() == ".png" else source
        figures.save(figures.redraw(csv, theme), target)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(str(target))


if __name__ == "__main__":
    app()
