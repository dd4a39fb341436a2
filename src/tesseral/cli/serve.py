"""``tesseral serve``: an OpenAI-compatible server for one model."""

from typing import Annotated

import typer

from tesseral.cli.inputs import EMBEDDED, Model, model_directory, require_llm
from tesseral.runtime.extras import require


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback are not protected.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model.", show_default="its directory")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of a prompt at most.", show_default="what the model can take"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 1024,
    max_requests: Annotated[int, typer.Option(help="Requests at a time; more are refused.")] = 256,
) -> None:
    """Serve a language model to clients of OpenAI's interface.

    Until Ctrl-C.

    Example: tesseral serve embedded --port 8000
    """
    require_llm("serve")
    for module in ("fastapi", "uvicorn", "openai"):
        require(module, extra="serve", purpose="tesseral serve")
    from tesseral import llm
    from tesseral.llm import serving

    directory = model_directory(model)
    loaded, tokenizer = llm.load(directory)
    served = name or (EMBEDDED if model == EMBEDDED else directory.resolve().name)
    serving.serve(
        loaded,
        tokenizer,
        name=served,
        host=host,
        port=port,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        max_requests=max_requests,
        ready=lambda address: typer.echo(f"serving {served} at {address}", err=True),
    )
    typer.echo("stopped; requests that were not done were dropped", err=True)
