"""`git`: the ledger's root as a git repository."""

import typer

from otledger.cli.app import RootOption, app, command, helped, root_of
from otledger.cli.options import Json

git_app = typer.Typer(
    help=helped("Keep the ledger in git.", "otledger git init"),
    short_help="Keep the ledger in git.",
)
app.add_typer(git_app, name="git")


@command("otledger git init", "otledger git init --root /srv/ledger", to=git_app)
def init(ctx: typer.Context, json: Json = False, root: RootOption = None) -> None:
    """Make the ledger's folder a git repository, or fit for the one that it is in, so that several machines pull and
    push it: git changes no byte of a segment and never merges two versions of one. Commits nothing."""
    from otledger.cli.output import note, out, out_json, safe
    from otledger.gitrepo import init as make

    done = make(root_of(ctx, root))
    if json:
        out_json(
            {
                "root": str(done.root),
                "repository": str(done.repository),
                "created": done.created,
                "changed": list(done.changed),
            }
        )
        return
    out(safe(f"{done.repository}: {'made' if done.created else 'was there'}"))
    for name in done.changed:
        out(safe(f"{done.root / name}: lines added"))
    if not done.changed:
        note("nothing had to be done")
