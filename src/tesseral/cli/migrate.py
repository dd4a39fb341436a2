"""``tesseral migrate``: rewrite an older checkpoint of this package's in the present version."""

from pathlib import Path
from typing import Annotated

import typer

from tesseral.cli.inputs import Out, Overwrite, require_llm


def migrate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Directory to read.", show_default=False)
    ],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Rewrite a quantised model that an older version wrote.

    Nothing is quantised anew; MODEL is only read.

    Example: tesseral migrate old-w4a4 new-w4a4
    """
    require_llm("migrate")
    from tesseral.llm.migrate import migrate as rewrite

    typer.echo(f"wrote {rewrite(model, out, overwrite=overwrite)}")
