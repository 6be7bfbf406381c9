"""Talks to a server with the official Ollama client, as its users do. Usage: ollama_client.py URL"""

import asyncio
import sys

import ollama

URL = sys.argv[1]
client = ollama.Client(host=URL)
# A question whose answer the model is sure of: no rounding changes it.
QUESTION = [{"role": "user", "content": "Complete the sentence: The capital of France is"}]
OPTIONS = {"temperature": 0, "num_predict": 32}


def models():
    found = next(model for model in client.list().models if model.model.startswith("smollm2"))
    assert found.details.family == "llama" and found.details.parameter_size.endswith("M"), found
    card = client.show(found.model)
    assert card.capabilities == ["completion", "embedding"] and card.modelinfo["general.architecture"] == "llama", card
    return found.model


def chat(model):
    answer = client.chat(model=model, messages=QUESTION, options=OPTIONS)
    text = answer.message.content
    assert "Paris" in text and answer.done and answer.done_reason in ("stop", "length"), answer
    assert answer.eval_count <= 32 and answer.eval_duration > 0 and answer.prompt_eval_count > 5, answer
    pieces = list(client.chat(model=model, messages=QUESTION, options=OPTIONS, stream=True))
    assert "".join(piece.message.content for piece in pieces) == text, pieces
    assert len(pieces) > 3 and [piece.done for piece in pieces[-2:]] == [False, True], pieces
    return text


def generate(model, text):
    answer = client.generate(model=model, prompt=QUESTION[0]["content"], options=OPTIONS)
    assert answer.response == text, (answer, text)
    pieces = list(client.generate(model=model, prompt="One, two, three,", raw=True, stream=True, options=OPTIONS))
    assert "four" in "".join(piece.response for piece in pieces), pieces


def embed(model):
    cosine = lambda a, b: sum(x * y for x, y in zip(a, b))
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates were raised again."]
    answer = client.embed(model=model, input=texts)
    cat, kitten, bank = answer.embeddings
    assert abs(cosine(cat, cat) - 1) < 1e-4 and cosine(cat, kitten) > cosine(cat, bank), "the similar are nearer"
    assert answer.prompt_eval_count > 15 and answer.total_duration >= answer.load_duration > 0, answer
    assert len(client.embed(model=model, input=texts[0], dimensions=8).embeddings[0]) == 8
    old = client.embeddings(model=model, prompt=texts[0]).embedding
    assert cosine(old, cat) > 0.999
    # A text that is too long is cut, unless that is forbidden.
    cut = client.embed(model=model, input="word " * 20_000, options={"num_ctx": 64})
    assert cut.prompt_eval_count == 64 and len(cut.embeddings) == 1, cut.prompt_eval_count
    try:
        client.embed(model=model, input="word " * 20_000, truncate=False)
    except ollama.ResponseError as error:
        assert error.status_code == 400 and "context" in error.error, error
    else:
        raise AssertionError("a text was cut in silence")


def life(model):
    running = client.ps().models
    assert [one.model for one in running] == [model] and running[0].context_length > 0, running
    assert client.generate(model=model, prompt="", keep_alive=0).done_reason == "unload"
    assert client.ps().models == []
    assert client.generate(model=model, prompt="").done_reason == "load"
    assert len(client.ps().models) == 1


def mistakes(model):
    for wrong in (
        lambda: client.chat(model="nobody", messages=QUESTION),
        lambda: client.chat(model=model, messages=QUESTION, format="json"),
        lambda: list(client.chat(model=model, messages=QUESTION, options={"mirostat": 2}, stream=True)),
    ):
        try:
            wrong()
        except ollama.ResponseError as error:
            assert error.status_code in (400, 404) and len(error.error) > 10, error
        else:
            raise AssertionError("no error")


async def at_once(model):
    client = ollama.AsyncClient(host=URL)
    story = [{"role": "user", "content": "Tell me a story."}]
    answers = await asyncio.gather(
        *(client.chat(model=model, messages=story, options={"num_predict": 20}) for _ in range(8))
    )
    assert all(answer.message.content for answer in answers), answers


model = models()
text = chat(model)
generate(model, text)
embed(model)
life(model)
mistakes(model)
asyncio.run(at_once(model))
print("all good")
