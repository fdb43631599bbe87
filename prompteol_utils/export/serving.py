"""Serve an exported folder over HTTP, as OpenAI's embeddings endpoint (extra: serve).

Import this file where a server is wanted only: it needs LitServe and sentence-transformers.
"""

import os
from pathlib import Path

try:
    import litserve
    from fastapi.responses import JSONResponse
    from litserve.specs.openai_embedding import (
        EmbeddingRequest,
        EmbeddingResponse,
        OpenAIEmbeddingSpec,
    )
    from sentence_transformers import SentenceTransformer
except ImportError as error:
    raise ImportError(
        "serving needs litserve and sentence-transformers: pip install prompteol-utils[serve]"
    ) from error


def _refusal(status: int, message: str) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    error = {"message": message, "type": "invalid_request_error"}
    return JSONResponse({"error": error}, status_code=status)


class _Endpoint(OpenAIEmbeddingSpec):
    """OpenAI's endpoint; a wrong name or an empty text is refused before the model is asked."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    async def embeddings_endpoint(self, request: EmbeddingRequest) -> EmbeddingResponse:
        if request.model != self.name:
            told = f"there is no model {request.model!r}; this server has {self.name!r}"
            return _refusal(404, told)
        texts = request.ensure_list()
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            return _refusal(400, "input is empty: send a text, or a list of texts")
        return await super().embeddings_endpoint(request)


class _Embeddings(litserve.LitAPI):
    """Loads the folder in the worker's process, and embeds the texts of a request."""

    def __init__(self, folder: str, name: str):
        super().__init__(spec=_Endpoint(name))
        self.folder = folder

    def setup(self, device: str):
        self.model = SentenceTransformer(self.folder, device=device)

    def decode_request(self, request: EmbeddingRequest) -> list[str]:
        return request.ensure_list()

    def predict(self, texts: list[str]):
        return self.model.encode(texts, show_progress_bar=False)

    def encode_response(self, vectors) -> dict:
        return {"embeddings": vectors.tolist()}


def make_server(
    folder: str | os.PathLike, *, name: str | None = None, device: str = "auto"
) -> litserve.LitServer:
    """Make a server; `run(host=…, port=…)` starts it.

    Args:
        folder: From `prompteol export`, or any folder that `SentenceTransformer` loads.
        name: What clients call the model; None: the folder's name.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: The folder holds no model.
    """
    folder = Path(folder).resolve()
    if not (folder / "modules.json").is_file():
        raise ValueError(f"{str(folder)!r} is no exported model: make one with `prompteol export`")
    api = _Embeddings(str(folder), name or folder.name)
    return litserve.LitServer(api, accelerator=device)
